"""Foreign interfaces: diffusers models and pipelines over the packed core."""

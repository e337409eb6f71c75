"""Training of autoencoders: the objective, the latents' scale, the loop."""

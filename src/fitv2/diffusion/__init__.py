"""Denoising diffusion, which trains and samples FiT, the baseline: schedule and objective. Knows no model."""

"""Denoising diffusion, which trains and samples FiT, the baseline: schedule, objective, samplers. Knows no model."""

"""From requests to latents: solvers, guidance, noise per image, and `generate`, which puts them together.

A request is a `SampleSpec` (class, size, seed), and `Sampling` says how to integrate and guide. `generate` packs the
requests into batches. For each batch a solver (`ode`, `sde`, `ddpm`) starts from noise and calls a `GuidedModel`, which
calls the model. The room knows a model only as a `Denoiser`, a function of packed tokens.
"""

"""Preparation: images of any source to latents in shards, once, resumable at any moment; and what came of it."""

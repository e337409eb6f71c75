"""Images: encoded to latents and decoded, made, edited, and laid out on contact sheets."""

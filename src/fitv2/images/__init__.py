"""Images of people: to and from latents, made, edited, and laid on contact sheets."""

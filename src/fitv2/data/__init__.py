"""Data: images at native aspect, the built-in set, and packs filled to a token budget."""

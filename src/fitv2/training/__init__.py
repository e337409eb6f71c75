"""Training: the loop, averaged weights and checkpoints."""

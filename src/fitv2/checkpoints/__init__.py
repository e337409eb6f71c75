"""Weights in files: model folders, the authors' checkpoints, state dicts of others, and the state of a training."""

"""Evaluation: how near images are to real ones, by the features that networks see in them."""

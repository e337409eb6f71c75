"""Evaluation: how near pictures are to real ones, by the features that networks see in them."""

"""Experiments as data: runs of recipes over variants and seeds, their scores, and what they say about claims."""

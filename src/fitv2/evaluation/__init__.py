"""Evaluation: how good generated garments are, by a small classifier of real ones and the distance of its features."""

"""Several processes that work together: who they are, what they agree on, and how they share a network."""

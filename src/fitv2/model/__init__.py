"""The FiTv2 transformer over packed tokens. Knows nothing of flow, samplers, data or training."""

"""Files, processor cores, memory and devices."""

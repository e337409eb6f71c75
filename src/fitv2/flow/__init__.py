"""The rectified flow from noise to data: the path, its time densities and the training objective. Knows no model."""

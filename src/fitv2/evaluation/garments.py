"""The classifier of garments as an extractor, for grey pictures of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checkpoints.state_dict import weights_digest
from ..data.fashion import CLASS_NAMES
from .classifier import canvas, load_classifier
from .features import Features

# The first layers of the trunk, to 7 x 7 places; 7 channels of them are 343 numbers.
SPATIAL_LAYERS, SPATIAL_CHANNELS = 12, 7


class GarmentExtractor:
    """An `Extractor`: 64 features, 343 with places, the ten classes of garments."""

    name, score, mode = "garments", "FD-garments", "L"
    resize = "antialiased bicubic to a longer side of 28, aspect kept, centred on black"
    class_names = CLASS_NAMES

    def __init__(self, device: str) -> None:
        self.network, self.device = load_classifier().to(device), device
        self.digest = weights_digest(self.network.state_dict())

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Features:
        page = canvas(list(pictures.float() / 127.5 - 1)).to(self.device)
        places = self.network.trunk[:SPATIAL_LAYERS](page)
        pooled = self.network.trunk[SPATIAL_LAYERS:](places)
        spatial = places[:, :SPATIAL_CHANNELS].flatten(1)
        return Features(pooled.cpu(), spatial.cpu(), self.network.head(pooled).softmax(1).cpu())

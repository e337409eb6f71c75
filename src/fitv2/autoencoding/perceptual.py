"""How different two images look: by features of EfficientNet-Lite0 at four scales.

It is LPIPS (arXiv 1801.03924, Eq. 1) with another network and the weight 1 for every channel, where LPIPS has weights
by how people judged. The FD-ENLite0 is of the same network, so that it favours what was trained with this distance.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..evaluation.extractors import efficientnet_lite0

# The last blocks at 1/2, 1/4, 1/8 and 1/16 of the sides: 16, 24, 40 and 112 channels.
BLOCKS = (0, 2, 4, 10)
EPSILON = 1e-8


class PerceptualDistance:
    """The distance of two batches of images. Raises UserError if the packages of the network are not installed."""

    def __init__(self, device: torch.device) -> None:
        self.network = efficientnet_lite0().eval().to(device).requires_grad_(False)

    def __call__(self, images: Tensor, references: Tensor) -> Tensor:
        """Returns (B,) float32 in [0, 16] for images and references (B, 3, H, W) in [-1, 1].

        Only the images get a gradient. Each layer gives the mean over places of the squared distance of features of
        unit length, at most 4.
        """
        with torch.no_grad():
            known = list(self.features(references))
        layers = zip(self.features(images), known, strict=True)
        return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in layers]).sum(0)

    def features(self, images: Tensor) -> Iterator[Tensor]:
        """Yields float32 features (B, C, h, w), of unit length at each place."""
        network = self.network
        x = network._swish(network._bn0(network._conv_stem((images * 127.5 + 0.5) / 128)))
        for number, block in enumerate(network._blocks[: BLOCKS[-1] + 1]):
            x = block(x)
            if number in BLOCKS:
                full = x.float()
                yield full * (full.square().sum(1, keepdim=True) + EPSILON).rsqrt()

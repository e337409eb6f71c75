"""Noise that belongs to an image, not to a batch: a seed gives the same image in any batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..randomness import image_generator


class ImageNoise:
    """A stream of standard normal noise per image, on the CPU, so that the device and the batch change nothing.

    seeds and lengths: of each image, the seed and the number of tokens. channels: numbers per token. Raises UserError
    for a seed that is not a whole number from 0 to 2**64 - 1.
    """

    def __init__(self, seeds: Sequence[int], lengths: Sequence[int], channels: int) -> None:
        generators = [image_generator(seed) for seed in seeds]
        self._streams = list(zip(generators, lengths, strict=True))
        self._channels = channels

    def draw(self) -> Tensor:
        """Returns the next noise (T, C) in float32: the start of the images, then that of each step of an SDE or DDPM.

        Each image's own stream continues from draw to draw.
        """
        return torch.cat([torch.randn(n, self._channels, generator=generator) for generator, n in self._streams])

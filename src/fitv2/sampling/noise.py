"""Noise that belongs to an image, not to a batch: a seed gives the same image in any batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..randomness import image_generator


class ImageNoise:
    """A stream of standard normal noise per image, on the CPU, so that the device and the batch change nothing.

    Successive draws continue each image's own stream: the first is the starting noise, the others feed an SDE or DDPM.

    Args:
        seeds: One per image.
        lengths: The number of tokens of each image.
        channels: Numbers per token.

    Raises:
        UserError: A seed that is not a whole number from 0 to 2**64 - 1.
    """

    def __init__(self, seeds: Sequence[int], lengths: Sequence[int], channels: int) -> None:
        if len(seeds) != len(lengths):
            raise ValueError(f"{len(seeds)} seeds for {len(lengths)} images")
        self._streams = [image_generator(seed) for seed in seeds]
        self._shapes = [(length, channels) for length in lengths]

    def draw(self) -> Tensor:
        """Returns the next noise (T, C) in float32, image after image."""
        pairs = zip(self._streams, self._shapes, strict=True)
        return torch.cat([torch.randn(shape, generator=stream) for stream, shape in pairs])

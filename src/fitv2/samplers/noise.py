"""Noise that belongs to an image, not to a batch: the same seed gives the same picture in any company."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..randomness import image_generator


class ImageNoise:
    """A stream of standard normal noise per image, on the CPU, so that devices and batch sizes change nothing.

    seeds, lengths: one seed and one number of tokens for each image of a packed batch. Successive draws continue each
    image's own stream: the first is the starting noise, further ones feed an SDE. Raises UserError for a seed that is
    not a whole number from 0 to 2**64 - 1.
    """

    def __init__(self, seeds: Sequence[int], lengths: Sequence[int], channels: int) -> None:
        if len(seeds) != len(lengths):
            raise ValueError(f"{len(seeds)} seeds for {len(lengths)} images")
        self._streams = [image_generator(seed) for seed in seeds]
        self._shapes = [(length, channels) for length in lengths]

    def draw(self) -> Tensor:
        """(T, C) float32, the images one after the other."""
        pairs = zip(self._streams, self._shapes, strict=True)
        return torch.cat([torch.randn(shape, generator=stream) for stream, shape in pairs])

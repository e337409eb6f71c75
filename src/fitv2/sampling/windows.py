"""Images larger than the network can compose, by overlapping windows (MultiDiffusion, arXiv 2302.08113).

The windows of an image are images of a packed batch of their own. Each model call computes all of them, and the image
moves by the weighted average of their outputs. Attention stays within a window, so that time grows with the area only.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from ..tokens import TokenBatch, upload
from .guidance import GuidedModel, per_token


class Window(NamedTuple):
    """A part of an image, in patches."""

    top: int
    left: int
    height: int
    width: int


def windows_of(size: tuple[int, int], window: tuple[int, int]) -> list[Window]:
    """Returns windows of at most that size that cover an image (height, width), neighbours overlapping by half or more.

    An axis that is no longer than the window is not cut.
    """
    (rows, height), (columns, width) = (_starts(side, most) for side, most in zip(size, window, strict=True))
    return [Window(top, left, height, width) for top in rows for left in columns]


def window_area(size: tuple[int, int], window: tuple[int, int]) -> int:
    """Returns the area of all windows of an image, of which there may be too many to list."""
    (rows, height), (columns, width) = (_starts(side, most) for side, most in zip(size, window, strict=True))
    return len(rows) * height * len(columns) * width


def _starts(side: int, most: int) -> tuple[list[int], int]:
    """Returns where the windows of one axis begin, evenly spread, and their length."""
    if side <= most:
        return [0], side
    steps = -(-2 * (side - most) // most)
    return [round(i * (side - most) / steps) for i in range(steps + 1)], most


class WindowedModel:
    """The guided output for images of any size, as the weighted mean of the outputs for their windows.

    A window counts less towards its edges, where it sees least of its surroundings, so that no seams are visible.

    Args:
        guide: Makes the guided model of windows, from their sizes (N, 2) in patches and the image of each.
        hw: (B, 2) int64 on the CPU, the height and width of each image in patches.
        window: The largest window in patches.
        device: The device of the model.
    """

    def __init__(
        self,
        guide: Callable[[Tensor, list[int]], GuidedModel],
        hw: Tensor,
        window: tuple[int, int],
        device: torch.device,
    ) -> None:
        self.batch = TokenBatch(torch.empty(int(hw.prod(1).sum()), 0, device=device), hw)
        found = [(image, one) for image, size in enumerate(self.batch.sizes) for one in windows_of(size, window)]
        self._image_of = [image for image, _ in found]
        offsets = [0, *accumulate(self.batch.lengths)]
        tokens = [token_indices(one, offsets[image], self.batch.sizes[image][1]) for image, one in found]
        weights = torch.cat([torch.outer(_slope(one.height), _slope(one.width)).flatten() for _, one in found])
        index = torch.cat(tokens)
        self._index = upload(index, device)
        sources, shares = mean_over(index, weights, len(self.batch.x))
        self._sources, self._shares = upload(sources, device), upload(shares[:, :, None], device)
        self.guided = guide(torch.tensor([[one.height, one.width] for _, one in found]), self._image_of)
        self.sampling, self.config, self.device = self.guided.sampling, self.guided.config, device

    def __call__(self, x: Tensor, t: Tensor, target: Tensor | None = None) -> Tensor:
        """As of `GuidedModel`: returns (T, output channels) for tokens x (T, C) of the whole images."""
        target = None if target is None else self._per_window(target)
        output = self.guided(x[self._index], self._per_window(t), target)
        return (output[self._sources] * self._shares).sum(1)

    def _per_window(self, t: Tensor) -> Tensor:
        return t if t.ndim == 0 else t[self._image_of]

    def expand(self, t: Tensor) -> Tensor:
        """Returns a time or a number per image (B,) as (T, 1) on the device, and a scalar unchanged."""
        return per_token(self.batch, t)

    @property
    def scale(self) -> float:
        """The guidance scale, which may be changed between calls."""
        return self.guided.scale

    @scale.setter
    def scale(self, scale: float) -> None:
        self.guided.scale = scale


Guided = GuidedModel | WindowedModel


def token_indices(window: Window, offset: int, columns: int) -> Tensor:
    """Returns the packed tokens of a window; offset: the first token of its image, columns: the image's width."""
    rows = offset + (window.top + torch.arange(window.height)) * columns
    return (rows[:, None] + window.left + torch.arange(window.width)).flatten()


def _slope(length: int) -> Tensor:
    """Returns weights that rise from both ends of a window to its middle."""
    places = torch.arange(length)
    return torch.minimum(places + 1, length - places).float()


def mean_over(index: Tensor, weights: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Returns, for each of `tokens` tokens, the places n in `index` that hold it, and their shares, both (tokens, K).

    A sum of shares is 1. Unused places have the share 0. Gathering in this order gives the same result on every device;
    a sum by index does not.
    """
    order = torch.argsort(index, stable=True)
    counts = torch.bincount(index, minlength=tokens)
    first = counts.cumsum(0) - counts
    token = index[order]
    rank = torch.arange(len(index)) - first[token]
    sources = torch.zeros(tokens, int(counts.max()), dtype=torch.int64)
    shares = torch.zeros(sources.shape)
    sources[token, rank], shares[token, rank] = order, weights[order]
    return sources, shares / shares.sum(1, keepdim=True)

"""Rows and columns of tokens spread over a fixed range: sizes beyond training then have positions that it knew.

In training each image draws its rows, and its columns, from 0 to `position_range` - 1, without repetition and in order:
what is learned is the order of patches, not their distance (RPE-2D, arXiv 2503.18719). In sampling they lie where such
draws lie on average, evenly. More rows than the range has numbers lie closer than 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .tokens import TokenBatch, upload


def even_positions(batch: TokenBatch, position_range: int) -> Tensor:
    """Returns (T, 2) float32, the mean (row, column) of `random_positions` of every token, on the batch's device."""

    def make() -> Tensor:
        return upload(gathered([[even(side, position_range) for side in hw] for hw in batch.sizes]), batch.x.device)

    return batch.cached(("even positions", position_range), make)


def random_positions(batch: TokenBatch, position_range: int, generator: torch.Generator) -> Tensor:
    """Returns (T, 2) float32 (row, column) of every token, drawn for each image, on the batch's device.

    generator: On the CPU, so that all devices get the same numbers.
    """

    def draw(side: int) -> Tensor:
        if side >= position_range:
            return even(side, position_range)
        return torch.randperm(position_range, generator=generator)[:side].sort().values.float()

    return upload(gathered([[draw(side) for side in hw] for hw in batch.sizes]), batch.x.device)


def even(side: int, position_range: int) -> Tensor:
    """Returns (side,) float32, the mean of the sorted draws of `side` of the numbers below the range."""
    return torch.arange(1, side + 1) * ((position_range + 1) / (side + 1)) - 1


def gathered(axes: list[list[Tensor]]) -> Tensor:
    """Returns (T, 2) for the (rows, columns) of each image."""
    return torch.cat([torch.cartesian_prod(rows, columns) for rows, columns in axes])

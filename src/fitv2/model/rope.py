"""2-D rotary position embedding: half of each head turns with the row, half with the column (FiT, Sec. 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_frequencies(axis_dim: int, theta: float = 10000.0) -> Tensor:
    """(axis_dim / 2,) float32 angles per patch for an axis that owns `axis_dim` numbers of each head."""
    return theta ** (-torch.arange(0, axis_dim, 2, dtype=torch.float32) / axis_dim)


def rotation_table(positions_T2: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (T, 1, head_dim / 2) float32, from (row, column) of every token.

    Always float32: in bfloat16 the angle itself is wrong by up to 0.06 rad at position 25.
    """
    frequencies = inverse_frequencies(head_dim // 2).to(positions_T2.device)
    angles = (positions_T2[:, :, None].float() * frequencies).flatten(1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x_TNH: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turns each adjacent pair (2i, 2i + 1) of every head by its angle; computed in float32, dtype kept."""
    cos, sin = table
    even, odd = x_TNH.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x_TNH.dtype)

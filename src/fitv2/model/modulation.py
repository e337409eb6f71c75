"""AdaLN-LoRA: one projection shared by all blocks plus a low-rank pair per block (FiTv2, Eq. 8).

S_i = W_global(c) + W2_i W1_i (c), with SiLU on c. Conditioning stays per image, (B, ...), until it meets the tokens:
projecting per token would cost 6 D^2 on each of them. FiT has a full projection in every block, none shared.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tokens import Rows, spread
from .recompute import recomputed


class LowRankModulation(nn.Sequential):
    """A block's own part of the modulation: (B, D) to (B, 6 D) through `rank`."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(width, rank), nn.Linear(rank, 6 * width))


class FullModulation(nn.Sequential):
    """SiLU and one linear layer to `parts` vectors of the width: (B, D) to (B, parts * D)."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(width, parts * width))


class NoSharedModulation(nn.Module):
    """Nothing to add to a block's own modulation."""

    def forward(self, c_BD: Tensor) -> Tensor:
        return torch.zeros((), dtype=c_BD.dtype, device=c_BD.device)


def modulated_norm(x_TD: Tensor, shift_BD: Tensor, scale_BD: Tensor, rows: Rows) -> Tensor:
    """LayerNorm without affine, then scale and shift from the conditioning in the row of each token, in float32."""
    return recomputed(_modulated_norm, x_TD, shift_BD.float(), 1 + scale_BD.float(), rows)


def gated(gate_BD: Tensor, x_TD: Tensor, rows: Rows) -> Tensor:
    """x times the gate in the row of each token, in float32."""
    return recomputed(_gated, gate_BD.float(), x_TD, rows)


def _modulated_norm(x_TD: Tensor, shift_BD: Tensor, factor_BD: Tensor, rows: Rows) -> Tensor:
    normed_TD = F.layer_norm(x_TD, x_TD.shape[-1:], eps=1e-6)
    return torch.addcmul(spread(shift_BD, rows), normed_TD, spread(factor_BD, rows))


def _gated(gate_BD: Tensor, x_TD: Tensor, rows: Rows) -> Tensor:
    return spread(gate_BD, rows) * x_TD

"""AdaLN-LoRA: one projection shared by all blocks plus a low-rank pair per block (FiTv2, Eq. 8).

S_i = W_global(c) + W2_i W1_i (c), with SiLU on c. Conditioning stays per image, (B, ...), until it meets the tokens:
projecting per token would cost 6 D^2 on each of them. FiT has a full projection in every block, none shared.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tokens import Rows, expand_to_tokens
from .compute import recomputed
from .config import FiTConfig


class Modulation(NamedTuple):
    """How one half of a block is modulated, each (B, D) in float32, a row per image."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


def split_modulation(modulation_B6D: Tensor) -> tuple[Modulation, Modulation]:
    """Returns the modulation of attention and that of the MLP."""
    parts = modulation_B6D.float().chunk(6, dim=-1)
    return Modulation(*parts[:3]), Modulation(*parts[3:])


class LowRankModulation(nn.Sequential):
    """A block's own part of the modulation: (B, D) to (B, 6 D) through `rank`."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(width, rank), nn.Linear(rank, 6 * width))


class FullModulation(nn.Sequential):
    """SiLU and one linear layer to `parts` vectors of the width: (B, D) to (B, parts * D)."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(width, parts * width))


class NoSharedModulation(nn.Module):
    """Adds nothing to a block's own modulation."""

    def forward(self, c_BD: Tensor) -> Tensor:
        return torch.zeros((), dtype=c_BD.dtype, device=c_BD.device)


def block_modulation(config: FiTConfig) -> nn.Module:
    """Returns a block's own part of the modulation, (B, D) to (B, 6 D)."""
    if config.modulation == "full":
        return FullModulation(config.width, parts=6)
    return LowRankModulation(config.width, config.modulation_rank)


def global_modulation(config: FiTConfig) -> nn.Module:
    """Returns the part of the modulation that all blocks share, (B, D) to (B, 6 D)."""
    return NoSharedModulation() if config.modulation == "full" else FullModulation(config.width, parts=6)


def modulated_norm(x_TD: Tensor, shift_BD: Tensor, scale_BD: Tensor, rows: Rows) -> Tensor:
    """Returns LayerNorm(x) without affine, scaled and shifted by the row of each token, in float32."""
    return recomputed(_modulated_norm, x_TD, shift_BD.float(), 1 + scale_BD.float(), rows)


def gated(gate_BD: Tensor, x_TD: Tensor, rows: Rows) -> Tensor:
    """Returns x times the gate in the row of each token, in float32."""
    return recomputed(_gated, gate_BD.float(), x_TD, rows)


def _modulated_norm(x_TD: Tensor, shift_BD: Tensor, factor_BD: Tensor, rows: Rows) -> Tensor:
    normed_TD = F.layer_norm(x_TD, x_TD.shape[-1:], eps=1e-6)
    return torch.addcmul(expand_to_tokens(shift_BD, rows), normed_TD, expand_to_tokens(factor_BD, rows))


def _gated(gate_BD: Tensor, x_TD: Tensor, rows: Rows) -> Tensor:
    return expand_to_tokens(gate_BD, rows) * x_TD

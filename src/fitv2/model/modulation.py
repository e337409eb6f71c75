"""AdaLN-LoRA: one projection shared by all blocks plus a low-rank pair per block (FiTv2, Eq. 8).

S_i = W_global(c) + W2_i W1_i (c), with SiLU on c. Conditioning stays per image, (B, ...), until it meets the tokens:
projecting per token would cost 6 D^2 on each of them. FiT has a full projection in every block, none shared.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tokens import RowOfToken, expand_to_tokens
from .numerics import recomputed


class Modulation(NamedTuple):
    """The modulation of one half of a block, each (B, D) in float32, a row per image."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


def projection(width: int, parts: int, rank: int | None = None) -> nn.Sequential:
    """Returns SiLU and a linear map of (B, D) to (B, parts * D), through `rank` if there is one."""
    linear = [nn.Linear(width, rank), nn.Linear(rank, parts * width)] if rank else [nn.Linear(width, parts * width)]
    return nn.Sequential(nn.SiLU(), *linear)


def modulated_norm(x_TD: Tensor, shift_BD: Tensor, scale_BD: Tensor, row_of_token: RowOfToken) -> Tensor:
    """Returns LayerNorm(x) without affine, scaled and shifted by the row of each token, in float32."""
    return recomputed(_modulated_norm, x_TD, shift_BD.float(), 1 + scale_BD.float(), row_of_token)


def gated(gate_BD: Tensor, x_TD: Tensor, row_of_token: RowOfToken) -> Tensor:
    """Returns x times the gate in the row of each token, in float32."""
    return recomputed(_gated, gate_BD.float(), x_TD, row_of_token)


def _modulated_norm(x_TD: Tensor, shift_BD: Tensor, factor_BD: Tensor, row_of_token: RowOfToken) -> Tensor:
    normed_TD = F.layer_norm(x_TD, x_TD.shape[-1:], eps=1e-6)
    return torch.addcmul(expand_to_tokens(shift_BD, row_of_token), normed_TD, expand_to_tokens(factor_BD, row_of_token))


def _gated(gate_BD: Tensor, x_TD: Tensor, row_of_token: RowOfToken) -> Tensor:
    return expand_to_tokens(gate_BD, row_of_token) * x_TD

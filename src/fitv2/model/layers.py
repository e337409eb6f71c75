"""The small parts of the transformer: embedders, SwiGLU and the final layer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tokens import RowOfToken
from .modulation import modulated_norm, projection
from .numerics import recomputed

FREQUENCIES = 256


class PatchEmbedder(nn.Module):
    """Projects tokens (T, C) to the width (T, D)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, width)

    def forward(self, x_TC: Tensor) -> Tensor:
        return self.proj(x_TC)


class TimestepEmbedder(nn.Module):
    """Embeds times (B,) as (B, D); they enter the sinusoids unscaled and in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t_B: Tensor) -> Tensor:
        half = FREQUENCIES // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t_B.device) / half)
        angles = t_B.float()[:, None] * frequencies
        return self.mlp(torch.cat((angles.cos(), angles.sin()), dim=-1))


class LabelEmbedder(nn.Module):
    """Embeds labels (B,) as (B, D); the label `num_classes` is the null class of classifier-free guidance."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, y_B: Tensor) -> Tensor:
        return self.embedding_table(y_B)


class SwiGLU(nn.Module):
    """fc2(silu(fc1_g(x)) * fc1_x(x)); the hidden width 2/3 of 4 D keeps the parameters of a plain MLP of 4 D."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1_g = nn.Linear(width, hidden)
        self.fc1_x = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.fc2(recomputed(silu_product, self.fc1_g(x_TD), self.fc1_x(x_TD)))


def silu_product(gate: Tensor, x: Tensor) -> Tensor:
    """Returns silu(gate) * x, for tensors of one shape."""
    return F.silu(gate) * x


class FinalLayer(nn.Module):
    """A modulated norm and a linear layer from the width to the output channels."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.adaLN_modulation = projection(width, 2)
        self.linear = nn.Linear(width, channels)

    def forward(self, x_TD: Tensor, c_BD: Tensor, row_of_token: RowOfToken) -> Tensor:
        shift_BD, scale_BD = self.adaLN_modulation(c_BD).chunk(2, dim=-1)
        return self.linear(modulated_norm(x_TD, shift_BD, scale_BD, row_of_token))

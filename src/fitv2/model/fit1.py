"""FiT, the predecessor (arXiv 2402.12376), as a relative of FiTv2 that differs in parts only.

No normalisation of queries and keys, a SwiGLU of the full width, its own AdaLN in every block, and two outputs per
number: the noise, and where its variance lies in its range. It is trained with diffusion (`fitv2.diffusion`) and takes
the integer step of 1000 as its time. The authors' padding has no counterpart: packed tokens give what real tokens get.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attention import SelfAttention
from .config import FiTConfig
from .modulation import FullModulation


@dataclass(frozen=True, kw_only=True)
class FiT1Config(FiTConfig):
    """The configuration of FiT. Raises ValueError for lora_rank and qk_norm_affine, of which it has neither.

    The model takes t (B,) as steps 0..999, whole or between. The authors' commit caps it at 1.0, which makes all steps
    but the first alike; clamp it to do the same.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora_rank is not None or self.qk_norm_affine:
            raise ValueError("FiT has no lora_rank and no qk_norm_affine")

    @property
    def output_channels(self) -> int:
        return 2 * self.token_channels

    @property
    def mlp_hidden(self) -> int:
        return int(self.width * self.mlp_ratio)

    def build_attention(self) -> SelfAttention:
        attention = SelfAttention(self.width, self.heads)
        attention.q_norm = attention.k_norm = nn.Identity()
        return attention

    def build_modulation(self) -> nn.Module:
        return FullModulation(self.width, parts=6)

    def build_global_modulation(self) -> nn.Module:
        return NoSharedModulation()


class NoSharedModulation(nn.Module):
    """Nothing to add to a block's own modulation."""

    def forward(self, c_BD: Tensor) -> Tensor:
        return torch.zeros((), dtype=c_BD.dtype, device=c_BD.device)

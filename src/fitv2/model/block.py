"""One transformer block: modulated attention within images and a modulated SwiGLU, both with gated residuals.

Shape suffixes as in `fitv2.tokens`: T tokens, B images, D width, N heads, H numbers per head.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from ..tokens import Rows, TokenBatch
from .attention import SelfAttention, packed_attention
from .config import FiTConfig
from .context import CrossAttention
from .layers import SwiGLU
from .modulation import Modulation, gated, modulated_norm, projection


class BlockInputs(NamedTuple):
    """The inputs of all blocks beside the residual stream.

    Attributes:
        c_BD: The conditioning; one row may serve several images.
        global_B6D: The modulation that all blocks share.
        rows: The row of the conditioning that belongs to each token.
        batch: The images; only their sizes matter.
        table: Cosines and sines of the rotation of each token.
        context: The packed context, for cross-attention.
    """

    c_BD: Tensor
    global_B6D: Tensor
    rows: Rows
    batch: TokenBatch
    table: tuple[Tensor, Tensor]
    context: TokenBatch | None = None


class FiTBlock(nn.Module):
    """Modulated self-attention and SwiGLU with gated residuals; the identity at initialisation."""

    def __init__(self, config: FiTConfig) -> None:
        super().__init__()
        self.attn = SelfAttention(config.width, config.heads, config.qk_norm, config.qk_norm_affine)
        self.mlp = SwiGLU(config.width, config.mlp_hidden)
        self.adaLN_modulation = projection(config.width, 6, config.modulation_rank)
        self.cross = CrossAttention(config.width, config.heads) if config.context == "cross" else None

    def forward(self, x_TD: Tensor, *inputs: Any) -> Tensor:
        """Returns the residual stream after the block. inputs: `BlockInputs`."""
        c_BD, global_B6D, rows, batch, table, context = BlockInputs(*inputs)
        parts = (global_B6D + self.adaLN_modulation(c_BD)).float().chunk(6, dim=-1)
        attention, mlp = Modulation(*parts[:3]), Modulation(*parts[3:])
        q, k, v = self.before_attention(x_TD, attention, rows, table)
        attended = packed_attention(q, k, v, batch, batch)
        if self.cross is None or context is None:
            return self.after_attention(x_TD, attended, attention, mlp, rows)
        x_TD = self.add_attention(x_TD, attended, attention, rows)
        return self.add_mlp(x_TD + self.cross(x_TD, batch, context), mlp, rows)

    # Two halves around attention: all that is per token, so that `compile_blocks` can fuse each into a few kernels.
    # Modulations are (B, D), and expanded to the tokens only inside: there a kernel reads them in passing.

    def before_attention(
        self, x_TD: Tensor, modulation: Modulation, rows: Rows, table: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        normed = modulated_norm(x_TD, modulation.shift, modulation.scale, rows)
        return self.attn.queries_keys_values(normed, table)

    def after_attention(
        self, x_TD: Tensor, attended_TNH: Tensor, attention: Modulation, mlp: Modulation, rows: Rows
    ) -> Tensor:
        return self.add_mlp(self.add_attention(x_TD, attended_TNH, attention, rows), mlp, rows)

    def add_attention(self, x_TD: Tensor, attended_TNH: Tensor, modulation: Modulation, rows: Rows) -> Tensor:
        return x_TD + gated(modulation.gate, self.attn.proj(attended_TNH.flatten(1)), rows)

    def add_mlp(self, x_TD: Tensor, modulation: Modulation, rows: Rows) -> Tensor:
        normed = modulated_norm(x_TD, modulation.shift, modulation.scale, rows)
        return x_TD + gated(modulation.gate, self.mlp(normed), rows)

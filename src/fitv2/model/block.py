"""One transformer block: modulated attention within images and a modulated SwiGLU, both with gated residuals.

Shape suffixes as in `fitv2.tokens`: T tokens, B images, D width, N heads, H numbers per head.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from ..tokens import RowOfToken, TokenBatch
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
        row_of_token: The row of the conditioning that belongs to each token.
        batch: The images; only their sizes matter.
        table: Cosines and sines of the rotation of each token.
        context: The packed context, for cross-attention.
    """

    c_BD: Tensor
    global_B6D: Tensor
    row_of_token: RowOfToken
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
        c_BD, global_B6D, row_of_token, batch, table, context = BlockInputs(*inputs)
        parts = (global_B6D + self.adaLN_modulation(c_BD)).float().chunk(6, dim=-1)
        attention, mlp = Modulation(*parts[:3]), Modulation(*parts[3:])
        q, k, v = self.before_attention(x_TD, attention, row_of_token, table)
        attended = packed_attention(q, k, v, batch, batch)
        if self.cross is None or context is None:
            return self.after_attention(x_TD, attended, attention, mlp, row_of_token)
        x_TD = self.add_attention(x_TD, attended, attention, row_of_token)
        return self.add_mlp(x_TD + self.cross(x_TD, batch, context), mlp, row_of_token)

    # Two halves around attention: all that is per token, so that `compile_blocks` can fuse each into a few kernels.
    # Modulations are (B, D), and expanded to the tokens only inside: there a kernel reads them in passing.

    def before_attention(
        self, x_TD: Tensor, modulation: Modulation, row_of_token: RowOfToken, table: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        normed = modulated_norm(x_TD, modulation.shift, modulation.scale, row_of_token)
        return self.attn.queries_keys_values(normed, table)

    def after_attention(
        self, x_TD: Tensor, attended_TNH: Tensor, attention: Modulation, mlp: Modulation, row_of_token: RowOfToken
    ) -> Tensor:
        return self.add_mlp(self.add_attention(x_TD, attended_TNH, attention, row_of_token), mlp, row_of_token)

    def add_attention(
        self, x_TD: Tensor, attended_TNH: Tensor, modulation: Modulation, row_of_token: RowOfToken
    ) -> Tensor:
        return x_TD + gated(modulation.gate, self.attn.proj(attended_TNH.flatten(1)), row_of_token)

    def add_mlp(self, x_TD: Tensor, modulation: Modulation, row_of_token: RowOfToken) -> Tensor:
        normed = modulated_norm(x_TD, modulation.shift, modulation.scale, row_of_token)
        return x_TD + gated(modulation.gate, self.mlp(normed), row_of_token)

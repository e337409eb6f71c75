"""One transformer block: modulated attention within images and a modulated SwiGLU, both with gated residuals.

Shape suffixes as in `fitv2.tokens`: T tokens, B images, D width, N heads, H numbers per head.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..tokens import Rows, TokenBatch
from .attention import packed_attention
from .config import FiTConfig
from .context import CrossAttention
from .layers import SwiGLU
from .modulation import gated, modulated_norm


class FiTBlock(nn.Module):
    """Modulated self-attention and SwiGLU with gated residuals; the identity at initialisation."""

    def __init__(self, config: FiTConfig) -> None:
        super().__init__()
        self.attn = config.build_attention()
        self.mlp = SwiGLU(config.width, config.mlp_hidden)
        self.adaLN_modulation = config.build_modulation()
        self.cross = CrossAttention(config.width, config.heads) if config.context == "cross" else None

    def forward(
        self,
        x_TD: Tensor,
        c_BD: Tensor,
        global_B6D: Tensor,
        rows: Rows,
        batch: TokenBatch,
        table: tuple[Tensor, Tensor],
        context: TokenBatch | None = None,
    ) -> Tensor:
        """The residual stream after the block. rows: of the conditioning, the one that belongs to each token."""
        modulation_B6D = (global_B6D + self.adaLN_modulation(c_BD)).float()
        shift, scale, gate, *for_mlp = modulation_B6D.chunk(6, dim=-1)
        q, k, v = self.before_attention(x_TD, shift, scale, rows, table)
        attended = packed_attention(q, k, v, batch, batch)
        if self.cross is None:
            return self.after_attention(x_TD, attended, gate, *for_mlp, rows)
        x_TD = self.add_attention(x_TD, attended, gate, rows)
        return self.add_mlp(x_TD + self.cross(x_TD, batch, context), *for_mlp, rows)

    # Two halves around attention: all that is per token, so that `FiT.compile_blocks` can fuse each into a few kernels.
    # Shifts, scales and gates are (B, D), and spread over the tokens only inside: there a kernel reads them in passing.

    def before_attention(self, x_TD: Tensor, shift: Tensor, scale: Tensor, rows: Rows, table: tuple[Tensor, Tensor]):
        return self.attn.queries_keys_values(modulated_norm(x_TD, shift, scale, rows), table)

    def after_attention(
        self,
        x_TD: Tensor,
        attended: Tensor,
        gate: Tensor,
        shift: Tensor,
        scale: Tensor,
        mlp_gate: Tensor,
        rows: Rows,
    ) -> Tensor:
        return self.add_mlp(self.add_attention(x_TD, attended, gate, rows), shift, scale, mlp_gate, rows)

    def add_attention(self, x_TD: Tensor, attended_TNH: Tensor, gate: Tensor, rows: Rows) -> Tensor:
        return x_TD + gated(gate, self.attn.proj(attended_TNH.flatten(1)), rows)

    def add_mlp(self, x_TD: Tensor, shift: Tensor, scale: Tensor, gate: Tensor, rows: Rows) -> Tensor:
        return x_TD + gated(gate, self.mlp(modulated_norm(x_TD, shift, scale, rows)), rows)

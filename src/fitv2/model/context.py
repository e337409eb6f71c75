"""Conditioning on packed context tokens, such as those of a text encoder: any number of its own for every image.

"cross": each block attends to the context after attending to the image, through a gate that starts at zero.
"joint": the context goes before the image's own tokens, on the diagonal of the 2-D RoPE, and its mean joins the AdaLN
(the text-to-image form of FiTv2). A context batch is a `TokenBatch` whose images are columns: hw is (tokens, 1).
Shape suffixes as in `fitv2.tokens`, and S packed context tokens, E their channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tokens import TokenBatch, upload
from .attention import packed_attention


class ContextEmbedder(nn.Module):
    """Projects context tokens (S, E) to the width (S, D)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, context: TokenBatch) -> TokenBatch:
        return context.with_x(self.mlp(context.x).float())


class CrossAttention(nn.Module):
    """Attention of each image's tokens to its own context, with normalised queries and keys; starts at zero."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.gate = nn.Parameter(torch.empty(width))

    def forward(self, x_TD: Tensor, batch: TokenBatch, context: TokenBatch) -> Tensor:
        """Returns what to add to the residual stream, (T, D)."""
        q = self.q(F.layer_norm(x_TD, x_TD.shape[-1:], eps=1e-6)).unflatten(-1, (self.heads, -1))
        k, v = self.kv(context.x).unflatten(-1, (2, self.heads, -1)).unbind(1)
        q, k = (F.layer_norm(x, x.shape[-1:], eps=1e-6).to(v.dtype) for x in (q, k))
        return self.gate * self.proj(packed_attention(q, k, v, batch, context).flatten(1))


def join(batch: TokenBatch, positions_T2: Tensor, context: TokenBatch) -> tuple[TokenBatch, Tensor, Tensor]:
    """Joins context and image tokens of each image to one sequence of T + S tokens, context first.

    Context token m of M is at (m - M, m - M): the paper has it at (m, m) and the image's tokens M further on, which is
    the same to rotary positions, and here these do not depend on the length of the text.

    Returns:
        The joined batch, whose images are columns; the (row, column) of every token (T + S, 2); and the indices of the
        image tokens (T,).
    """

    def places() -> tuple[TokenBatch, Tensor, Tensor, Tensor]:
        lengths, own = context.lengths, batch.lengths
        from_context = torch.arange(sum(lengths)).split(lengths)
        from_image = (torch.arange(sum(own)) + sum(lengths)).split(own)
        order = torch.cat([part for pair in zip(from_context, from_image, strict=True) for part in pair])
        own_tokens = (order >= sum(lengths)).nonzero().flatten()
        order, own_tokens = (upload(index, batch.x.device) for index in (order, own_tokens))
        diagonal = context.positions[:, :1] - context.expand_to_tokens(context.offsets.diff())[:, None]
        columns = [(m + n, 1) for m, n in zip(lengths, own, strict=True)]
        return TokenBatch(batch.x.new_empty(len(order), 0), columns), diagonal.expand(-1, 2), order, own_tokens

    joined, diagonal, order, own_tokens = batch.cached(("joined", *context.lengths), places)
    positions = torch.cat((diagonal.to(positions_T2.dtype), positions_T2))[order]
    return joined.with_x(torch.cat((context.x, batch.x))[order]), positions, own_tokens

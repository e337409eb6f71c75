"""Self-attention inside each image of a packed batch, with normalised queries and keys (FiTv2, Sec. III-B)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rope import rotate

# On a CPU plain products beat the fused kernel (about twice in bfloat16), until their (L, L) scores leave the caches.
LONGEST_PLAIN = 512


def packed_attention(q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, runs: list[tuple[int, ...]]) -> Tensor:
    """Attention that never crosses an image's border; (T, N, H) in and out.

    runs: (images, tokens per image) of neighbouring images of equal length, which become one batched product each:
    views, no copies, no padding. Sort a batch by length to have few of them. Where keys and values are of a context:
    (images, tokens, context tokens), and k, v are (S, N, H).
    """
    queries, keys = ([run[0] * run[side] for run in runs] for side in (1, -1))
    outputs = []
    for run, q, *kv in zip(runs, q_TNH.split(queries), k_TNH.split(keys), v_TNH.split(keys), strict=True):
        q, k, v = (x.unflatten(0, (run[0], -1)).transpose(1, 2) for x in (q, *kv))
        plain = q.device.type == "cpu" and max(run[1:]) <= LONGEST_PLAIN
        attend = plain_attention if plain else F.scaled_dot_product_attention
        outputs.append(attend(q, k, v).transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(H)) v over (..., L, H), the softmax in float32."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return scores.float().softmax(-1).to(v.dtype) @ v


class SelfAttention(nn.Module):
    """Multi-head self-attention; `qk_norm_affine` gives the q/k LayerNorm a learned scale (no shift)."""

    def __init__(self, width: int, heads: int, qk_norm_affine: bool = False) -> None:
        super().__init__()
        head_dim = width // heads
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(head_dim, eps=1e-6, elementwise_affine=qk_norm_affine, bias=False)
        self.k_norm = nn.LayerNorm(head_dim, eps=1e-6, elementwise_affine=qk_norm_affine, bias=False)
        self.proj = nn.Linear(width, width)

    def queries_keys_values(self, x_TD: Tensor, table: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised and rotated q and k, and v, each (T, N, H)."""
        q, k, v = self.qkv(x_TD).unflatten(-1, (3, self.heads, -1)).unbind(1)
        q, k = rotate(self.q_norm(q), table), rotate(self.k_norm(k), table)
        return q.to(v.dtype), k.to(v.dtype), v

"""Self-attention inside each image of a packed batch, with normalised queries and keys (FiTv2, Sec. III-B).

Shape suffixes as in `fitv2.tokens`, and S tokens that keys and values belong to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..tokens import TokenBatch, runs_of
from .numerics import fastest_attention, recomputed
from .rope import rotate


def packed_attention(q_TNH: Tensor, k_SNH: Tensor, v_SNH: Tensor, queries: TokenBatch, keys: TokenBatch) -> Tensor:
    """Returns the attention (T, N, H) of each image's tokens to its own keys alone, without padding or mask.

    On CUDA in half precision one kernel serves all lengths; else there is a batched product for each run of
    neighbouring images of equal lengths.

    Args:
        q_TNH, k_SNH, v_SNH: Queries, keys and values.
        queries: The batch whose tokens the queries are.
        keys: The batch whose tokens the keys are: the same one, or the context of its images.
    """
    if takes_varlen(q_TNH):
        from torch.nn.attention import varlen  # Loads torch's compiler, which takes seconds.

        lengths = queries.offsets, keys.offsets, max(queries.lengths), max(keys.lengths)
        attended: Any = varlen.varlen_attn(q_TNH.contiguous(), k_SNH.contiguous(), v_SNH.contiguous(), *lengths)
        return attended
    if keys is queries:  # As in every block: these runs are known.
        runs = [(images, length, length) for images, length in queries.equal_length_runs]
    else:
        runs = [(n, *pair) for n, pair in runs_of(list(zip(queries.lengths, keys.lengths, strict=True)))]
    q_sizes, k_sizes = [n * tokens for n, tokens, _ in runs], [n * keys for n, _, keys in runs]
    parts = zip(q_TNH.split(q_sizes), k_SNH.split(k_sizes), v_SNH.split(k_sizes), strict=True)
    outputs = []
    for (images, *_), part in zip(runs, parts, strict=True):
        q, k, v = (x.unflatten(0, (images, -1)).transpose(1, 2) for x in part)
        outputs.append(fastest_attention(q, k)(q, k, v).transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def takes_varlen(q_TNH: Tensor) -> bool:
    """Whether torch's kernel for sequences of many lengths, Flash Attention, knows this device, dtype and width."""
    if q_TNH.device.type != "cuda" or q_TNH.dtype not in (torch.bfloat16, torch.float16):
        return False
    head_dim = q_TNH.shape[-1]
    return torch.cuda.get_device_capability(q_TNH.device) >= (8, 0) and head_dim % 8 == 0 and head_dim <= 256


class SelfAttention(nn.Module):
    """Multi-head self-attention; `qk_norm_affine` gives the LayerNorm of q and k a learned scale (no shift)."""

    def __init__(self, width: int, heads: int, qk_norm: bool = True, qk_norm_affine: bool = False) -> None:
        super().__init__()

        def norm() -> nn.Module:
            if not qk_norm:
                return nn.Identity()
            return nn.LayerNorm(width // heads, eps=1e-6, elementwise_affine=qk_norm_affine, bias=False)

        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = norm(), norm()
        self.proj = nn.Linear(width, width)

    def queries_keys_values(self, x_TD: Tensor, table: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns q and k, normalised (if they are to be) and rotated, and v, each (T, N, H)."""
        q, k, v = self.qkv(x_TD).unflatten(-1, (3, self.heads, -1)).unbind(1)
        return *recomputed(self._rotated, q, k, *table), v

    def _rotated(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        q, k = (rotate(norm(x), (cos, sin)).to(x.dtype) for x, norm in ((q, self.q_norm), (k, self.k_norm)))
        return q, k

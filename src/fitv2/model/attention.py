"""Self-attention inside each image of a packed batch, with normalised queries and keys (FiTv2, Sec. III-B)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tokens import TokenBatch, runs_of
from .recompute import recomputed
from .rope import rotate

# On a CPU plain products beat the fused kernel until their (L, L) float32 scores leave the caches. Products of float16
# are so slow there that the fused kernel always wins.
LONGEST_PLAIN = {torch.bfloat16: 256, torch.float16: 0}
LONGEST_PLAIN_FLOAT32 = 512


def packed_attention(q_TNH: Tensor, k_SNH: Tensor, v_SNH: Tensor, queries: TokenBatch, keys: TokenBatch) -> Tensor:
    """Attention of each image's tokens to its own keys alone; (T, N, H) out.

    queries, keys: whose tokens these are: the same batch, or for keys a context's. No padding and no mask: on CUDA in
    half precision one kernel for all lengths, else a batched product for each run of neighbours of equal lengths.
    """
    if takes_varlen(q_TNH):
        lengths = queries.offsets, keys.offsets, max(queries.lengths), max(keys.lengths)
        return varlen_attention(q_TNH.contiguous(), k_SNH.contiguous(), v_SNH.contiguous(), *lengths)
    if keys is queries:  # As in every block: these runs are known.
        runs = [(n, length, length) for n, length in queries.runs]
    else:
        runs = [(n, *pair) for n, pair in runs_of(list(zip(queries.lengths, keys.lengths, strict=True)))]
    return attention_by_runs(q_TNH, k_SNH, v_SNH, runs)


def takes_varlen(q_TNH: Tensor) -> bool:
    """Whether torch's kernel for sequences of many lengths, Flash Attention, knows this device, dtype and width."""
    if q_TNH.device.type != "cuda" or q_TNH.dtype not in (torch.bfloat16, torch.float16):
        return False
    head_dim = q_TNH.shape[-1]
    return torch.cuda.get_device_capability(q_TNH.device) >= (8, 0) and head_dim % 8 == 0 and head_dim <= 256


def varlen_attention(q_TNH: Tensor, k_SNH: Tensor, v_SNH: Tensor, *lengths) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # With torch's compiler in tow, it takes seconds to load.

    return varlen_attn(q_TNH, k_SNH, v_SNH, *lengths)


def attention_by_runs(q_TNH: Tensor, k_SNH: Tensor, v_SNH: Tensor, runs: list[tuple[int, int, int]]) -> Tensor:
    """The same through views, without copies. runs: (images, tokens of each, keys of each); sorted batches have few."""
    sides = [n * tokens for n, tokens, _ in runs], [n * keys for n, _, keys in runs]
    outputs = []
    for run, q, *kv in zip(runs, q_TNH.split(sides[0]), k_SNH.split(sides[1]), v_SNH.split(sides[1]), strict=True):
        q, k, v = (x.unflatten(0, (run[0], -1)).transpose(1, 2) for x in (q, *kv))
        outputs.append(fastest_attention(q, k)(q, k, v).transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def fastest_attention(q: Tensor, k: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """What is fastest on this device, in this precision and at these lengths, for (n, N, L, H) of equal lengths."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention
    longest = LONGEST_PLAIN.get(q.dtype, LONGEST_PLAIN_FLOAT32)
    fits = max(q.shape[-2], k.shape[-2]) <= longest
    return plain_attention if fits else F.scaled_dot_product_attention


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(H)) v over (..., L, H) in the dtype of q.

    Scores and their gradients are float32 at least: rounded to half precision, large ones would be off by whole units.
    """
    return _PlainAttention.apply(q.contiguous(), k.contiguous(), v.contiguous())


class _PlainAttention(torch.autograd.Function):
    """Its backward pass makes the (L, L) probabilities again: of long images they would be most of a step's memory."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        p = probabilities(q, k)
        # What is compiled is one graph for all lengths, and cannot choose by them.
        short = not torch.compiler.is_compiling() and k.shape[-2] <= k.shape[-1]
        ctx.save_for_backward(q, k, v, p if short else None)
        return p.to(v.dtype) @ v

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, p = ctx.saved_tensors
        # Made again also where this pass is differentiated itself: what was kept is a constant there.
        p = probabilities(q, k) if p is None or torch.is_grad_enabled() else p
        of_scores = torch.ops.aten._softmax_backward_data(float32_product(grad, v.mT), p, -1, p.dtype)
        of_scores = (of_scores * q.shape[-1] ** -0.5).to(q.dtype)
        return of_scores @ k, of_scores.mT @ q, p.to(grad.dtype).mT @ grad


def probabilities(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(H)), (..., L, L) in float32 at least."""
    q = q.to(torch.promote_types(q.dtype, torch.float32))
    return float32_product(q * q.shape[-1] ** -0.5, k.mT).softmax(-1)


def float32_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32 at least, also under autocast."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    with torch.autocast(a.device.type, enabled=False):
        return a.to(dtype) @ b.to(dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention; `qk_norm_affine` gives the q/k LayerNorm a learned scale (no shift)."""

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
        """q and k, normalised (if they are to be) and rotated, and v, each (T, N, H)."""
        q, k, v = self.qkv(x_TD).unflatten(-1, (3, self.heads, -1)).unbind(1)
        return *recomputed(self._turned, q, k, *table), v

    def _turned(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        pairs = ((q, self.q_norm), (k, self.k_norm))
        return tuple(rotate(norm(x), (cos, sin)).to(x.dtype) for x, norm in pairs)

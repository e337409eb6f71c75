"""How operations compute: in half precision, recomputed in the backward pass, and fast on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")
# On a CPU plain products beat the fused kernel until their (L, L) float32 scores leave the caches. The limits of
# half precision were measured when those products were in half precision, too.
LONGEST_PLAIN = {torch.float64: 512, torch.float32: 512, torch.bfloat16: 256, torch.float16: 0}


def autocast_in(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[Any]:
    """Returns autocast in a half-precision dtype, unless a caller has already begun it; for other dtypes nothing."""
    if dtype not in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, dtype)


def recomputed(function: Callable[..., Result], *inputs: Any) -> Result:
    """Returns function(*inputs) and saves only the inputs for the backward pass.

    For cheap element-wise functions without random numbers: memory matters more than computing them twice.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():  # The compiler weighs this by itself.
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, determinism_check="none")


def fastest_attention(q: Tensor, k: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Returns the fastest function on this device, in this precision and at these lengths, for (n, N, L, H)."""
    if q.device.type == "cpu" and max(q.shape[-2], k.shape[-2]) <= LONGEST_PLAIN[q.dtype]:
        return plain_attention
    return F.scaled_dot_product_attention


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Returns softmax(q k^T / sqrt(H)) v over (..., L, H) in the dtype of q.

    It is computed in float32 at least: large scores, rounded to half precision, would be off by whole units, and
    products of matrices as small as those of one head are no faster in half precision.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    return _PlainAttention.apply(*(x.to(dtype).contiguous() for x in (q, k, v))).to(q.dtype)


class _PlainAttention(torch.autograd.Function):
    """Its backward pass computes the (L, L) probabilities again: of long images they would be most of the memory."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            p = probabilities(q, k)
            # What is compiled is one graph for all lengths, and cannot choose by them.
            short = not torch.compiler.is_compiling() and k.shape[-2] <= k.shape[-1]
            ctx.save_for_backward(q, k, v, p if short else None)
            return p @ v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (grad,) = grads
        q, k, v, p = ctx.saved_tensors
        with torch.autocast(q.device.type, enabled=False):
            # Also computed again where this pass is differentiated itself: what was kept is a constant there.
            p = probabilities(q, k) if p is None or torch.is_grad_enabled() else p
            of_scores = torch.ops.aten._softmax_backward_data(grad @ v.mT, p, -1, p.dtype)
            scale = q.shape[-1] ** -0.5
            return of_scores @ k * scale, of_scores.mT @ q * scale, p.mT @ grad


def probabilities(q: Tensor, k: Tensor) -> Tensor:
    """Returns softmax(q k^T / sqrt(H)), (..., L, L)."""
    return ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(-1)


def lay_out_by_input(model: nn.Module) -> None:
    """Transposes the memory of linear layers' weights, which makes bfloat16 inference on a CPU a tenth faster.

    Shapes and values stay as they are; weights on another device are left alone.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and layer.weight.device.type == "cpu":
            layer.weight.data = layer.weight.data.t().contiguous().t()

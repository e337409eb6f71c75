"""How the network runs: everything that makes it fast or small and changes no result.

Images are sorted by length, images of equal time and label share their conditioning, blocks may be recomputed in the
backward pass, reused between sampling steps, filled up to a fixed number of tokens, and compiled. `FiT` calls these
functions and reads like the paper otherwise. The layout for a CPU is in `fitv2.model.numerics`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import UserError
from ..tokens import RowOfToken, TokenBatch, upload
from .block import BlockInputs, FiTBlock
from .config import RopeScheme

# Tokens of an image that only fills up: few, because attention takes their square.
LONGEST_IN_TAIL = 64
# Applies the inner blocks to the residual stream (T, D), or reuses what they added before: `sampling.cache.BlockCache`.
Cache = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]


class Inputs(NamedTuple):
    """The inputs of a network. Each image has one time, one label and, for a model with context, one context.

    Attributes:
        batch: The images; x is (T, C).
        t_B: (B,) float in [0, 1], or steps in [0, 999] for a model of noise.
        y_B: (B,) int64 in [0, num_classes].
        context: The context of each image, for a model with one.
        rope: The RoPE scheme; None means that of the configuration.
        cache: The state that successive calls of a sampling share.
        positions_T2: (T, 2) float, the row and column of each token; None means those of the configuration.
        internal: Whether the output of the internal head follows, in (T, 2 output channels); without `cache`.
        target_B: (B,) float, the times to which steps lead, for a model with `target_blocks`; None means t_B, where the
            mean velocity is the velocity.
    """

    batch: TokenBatch
    t_B: Tensor
    y_B: Tensor
    context: TokenBatch | None = None
    rope: RopeScheme | None = None
    cache: Cache | None = None
    positions_T2: Tensor | None = None
    internal: bool = False
    target_B: Tensor | None = None


def sorted_by_length(inputs: Inputs, joint: bool) -> tuple[Inputs, list[int] | None]:
    """Returns the inputs with the images sorted by length, and their order, None if it was that already.

    Images of equal length become neighbours, and attention needs few products. joint: whether attention sees an image
    and its context as one sequence, whose length then counts.
    """
    batch, context, positions_T2, target_B = inputs.batch, inputs.context, inputs.positions_T2, inputs.target_B
    lengths = list(zip(batch.lengths, (context or batch).lengths, strict=True))
    if joint:
        lengths = [(sum(both), 0) for both in lengths]
    # A compiled graph is made for one mix of lengths anyway, and cannot sort them.
    if torch.compiler.is_compiling() or all(shorter <= longer for shorter, longer in pairwise(lengths)):
        return inputs, None
    order = sorted(range(len(batch)), key=lengths.__getitem__)
    index = batch.cached(("order", *order), lambda: upload(torch.tensor(order), batch.x.device))
    return inputs._replace(
        batch=batch.select(order),
        t_B=inputs.t_B[index],
        y_B=inputs.y_B[index],
        context=context and context.select(order),
        positions_T2=None if positions_T2 is None else batch.with_x(positions_T2).select(order).x,
        target_B=None if target_B is None else target_B[index],
    ), order


def inverse(order: list[int]) -> list[int]:
    """Returns the inverse of a permutation."""
    return sorted(range(len(order)), key=order.__getitem__)


def distinct_conditioning(batch: TokenBatch, t_B: Tensor, y_B: Tensor) -> tuple[Tensor, Tensor, RowOfToken]:
    """Returns times and labels with each pair once, and the row of each token among them.

    In training nearly all pairs differ, and on a GPU looking for equal ones would make it wait: all are kept there.
    """
    if t_B.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return t_B, y_B, batch.row_of_token
    pairs_U2, row_B = torch.stack((t_B.double(), y_B.double()), 1).unique(dim=0, return_inverse=True)
    row_of_token = batch.row_of_token._replace(row_index=row_B[batch.image_index])
    return pairs_U2[:, 0].to(t_B.dtype), pairs_U2[:, 1].to(y_B.dtype), row_of_token


def run_blocks(
    blocks: Sequence[nn.Module],
    x_TD: Tensor,
    inputs: BlockInputs,
    cache: Cache | None,
    token_budget: int,
    activation_checkpointing: bool,
) -> Tensor:
    """Returns the residual stream (T, D) after the blocks."""
    tokens, training = len(x_TD), torch.is_grad_enabled()
    if tokens < token_budget and training:
        x_TD, inputs = pad_to(x_TD, inputs, token_budget)

    def through(some: Sequence[nn.Module], x_TD: Tensor) -> Tensor:
        for block in some:
            if activation_checkpointing and training:
                x_TD = checkpoint(block, x_TD, *inputs, use_reentrant=False)
            else:
                x_TD = block(x_TD, *inputs)
        return x_TD

    if cache is None:
        return through(blocks, x_TD)[:tokens]
    first, inner, last = blocks[:1], blocks[1:-1], blocks[1:][-1:]
    return through(last, cache(through(first, x_TD), partial(through, inner)))[:tokens]


def pad_to(x_TD: Tensor, inputs: BlockInputs, total: int) -> tuple[Tensor, BlockInputs]:
    """Returns the same followed by images of zeros, up to `total` tokens, so that all steps have one shape."""
    batch = inputs.batch.with_x(x_TD).pad_to(total, LONGEST_IN_TAIL)
    added, context = len(batch) - len(inputs.batch), inputs.context
    cos, sin = (F.pad(side, (0, 0, 0, 0, 0, total - len(x_TD))) for side in inputs.table)
    return batch.x, BlockInputs(
        F.pad(inputs.c_BD, (0, 0, 0, added)),
        F.pad(inputs.global_B6D, (0, 0, 0, added)),
        batch.row_of_token,
        batch,
        (cos, sin),
        context and context.pad_to(len(context.x) + added, 1),
    )


def compile_blocks(blocks: nn.ModuleList, device: torch.device, fixed_shape: bool) -> None:
    """Fuses the element-wise work of the blocks with torch.compile, once for all blocks and any number of tokens.

    fixed_shape: whether all training steps have the same number of tokens. Raises UserError on a CPU without a C++
    compiler, which torch needs there.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise UserError(f"torch.compile needs the C++ compiler {compiler} (Debian: g++), and it is not there")
    for name in ("before_attention", "after_attention"):
        compiled = torch.compile(getattr(FiTBlock, name), dynamic=None if fixed_shape else True)
        for block in blocks:
            setattr(block, name, partial(compiled, block))

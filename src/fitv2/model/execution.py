"""How the network runs: everything that makes it fast or small and changes no result.

Images are sorted by length, images of equal time and label share their conditioning, blocks may be recomputed in the
backward pass, reused between sampling steps, filled up to a fixed number of tokens, and compiled. `FiT` calls the first
three functions and reads like the paper otherwise. The layout for a CPU is in `fitv2.model.compute`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial, wraps
from itertools import pairwise
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import UserError
from ..tokens import Rows, TokenBatch, upload
from .block import BlockInputs, FiTBlock

# Tokens of an image that only fills up: few, because attention takes their square.
LONGEST_IN_TAIL = 64


class Cache(Protocol):
    """What a forward pass may reuse from the one before: see `fitv2.sampling.cache.BlockCache`."""

    def add(self, x_TD: Tensor, inner: Callable[[Tensor], Tensor]) -> Tensor: ...


def sorted_by_length(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorates a forward pass: it gets the images sorted by length, and its result goes back into their order.

    Images of equal length become neighbours, and attention needs few products.
    """

    @wraps(forward)
    def in_order(
        model: nn.Module, batch: TokenBatch, t_B: Tensor, y_B: Tensor, context: TokenBatch | None = None, **options: Any
    ) -> Tensor:
        if torch.compiler.is_compiling():  # A graph is made for one mix of lengths anyway, and cannot sort them.
            return forward(model, batch, t_B, y_B, context, **options)
        lengths = list(zip(batch.lengths, context.lengths if context else batch.lengths, strict=False))
        of_each_one = {len(batch)} == {len(t_B), len(y_B), len(lengths)}  # `forward` refuses other numbers.
        if not of_each_one or all(shorter <= longer for shorter, longer in pairwise(lengths)):
            return forward(model, batch, t_B, y_B, context, **options)
        order = sorted(range(len(batch)), key=lengths.__getitem__)
        back = sorted(range(len(order)), key=order.__getitem__)
        index = batch.once(("order", *order), lambda: upload(torch.tensor(order), batch.x.device))
        batch, context = batch.select(order), context.select(order) if context else None
        x = forward(model, batch, t_B[index], y_B[index], context, **options)
        return batch.with_x(x).select(back).x

    return in_order


def distinct_conditioning(batch: TokenBatch, t_B: Tensor, y_B: Tensor) -> tuple[Tensor, Tensor, Rows]:
    """Returns times and labels with each pair once, and the row of each token among them.

    In training nearly all pairs differ, and on a GPU looking for equal ones would make it wait: all are kept there.
    """
    if t_B.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return t_B, y_B, batch.rows
    pairs_U2, row_B = torch.stack((t_B.double(), y_B.double()), 1).unique(dim=0, return_inverse=True)
    rows = batch.rows._replace(index=row_B[batch.rows.index])
    return pairs_U2[:, 0].to(t_B.dtype), pairs_U2[:, 1].to(y_B.dtype), rows


def run_blocks(
    blocks: nn.ModuleList,
    x_TD: Tensor,
    inputs: BlockInputs,
    cache: Cache | None,
    token_budget: int,
    activation_checkpointing: bool,
) -> Tensor:
    """Returns the residual stream (T, D) after all blocks."""
    tokens, training = len(x_TD), torch.is_grad_enabled()
    if tokens < token_budget and training:
        x_TD, inputs = pad_to(x_TD, inputs, token_budget)

    def through(some: nn.ModuleList, x_TD: Tensor) -> Tensor:
        for block in some:
            if activation_checkpointing and training:
                x_TD = checkpoint(block, x_TD, *inputs, use_reentrant=False)
            else:
                x_TD = block(x_TD, *inputs)
        return x_TD

    if cache is None:
        return through(blocks, x_TD)[:tokens]
    first, rest = blocks[:1], blocks[1:]
    return through(rest[-1:], cache.add(through(first, x_TD), partial(through, rest[:-1])))[:tokens]


def pad_to(x_TD: Tensor, inputs: BlockInputs, total: int) -> tuple[Tensor, BlockInputs]:
    """Returns the same followed by images of zeros, up to `total` tokens, so that all steps have one shape."""
    batch = inputs.batch.with_x(x_TD).pad_to(total, LONGEST_IN_TAIL)
    added, more = len(batch) - len(inputs.batch), total - len(x_TD)
    context = inputs.context
    cos, sin = (F.pad(side, (0, 0, 0, 0, 0, more)) for side in inputs.table)
    return batch.x, inputs._replace(
        c_BD=F.pad(inputs.c_BD, (0, 0, 0, added)),
        global_B6D=F.pad(inputs.global_B6D, (0, 0, 0, added)) if inputs.global_B6D.ndim else inputs.global_B6D,
        rows=batch.rows,
        batch=batch,
        table=(cos, sin),
        context=context and context.pad_to(len(context.x) + added, 1),
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

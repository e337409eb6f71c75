"""FiTv2: a diffusion transformer over packed tokens of pictures of any size (arXiv 2410.13925, Sec. III).

Shape suffixes as in `fitv2.tokens`: T tokens, B images, C token channels, D width.
"""

from __future__ import annotations

import os
import shutil
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import UserError
from ..tokens import Rows, TokenBatch, upload
from .block import FiTBlock
from .block_cache import BlockCache
from .config import FiTConfig
from .context import ContextEmbedder, join
from .init import initialise_fit
from .layers import FinalLayer, LabelEmbedder, PatchEmbedder, TimestepEmbedder
from .precision import autocast_in
from .rope import RopeScheme, rotation_table

# Tokens of an image that only fills up: few, because attention takes their square.
LONGEST_IN_TAIL = 64


class FiT(nn.Module):
    """The velocity network: (packed batch, t in [0, 1] with 1 = data, label) to one vector per token."""

    def __init__(self, config: FiTConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.token_budget = 0
        self.x_embedder = PatchEmbedder(config.token_channels, config.width)
        self.t_embedder = TimestepEmbedder(config.width)
        self.y_embedder = LabelEmbedder(config.num_classes, config.width)
        self.global_adaLN_modulation = config.build_global_modulation()
        self.blocks = nn.ModuleList(FiTBlock(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config.width, config.output_channels)
        if config.context != "none":
            self.context_embedder = ContextEmbedder(config.context_channels, config.width)
        initialise_fit(self)

    @property
    def null_label(self) -> int:
        """The label that stands for "no class"."""
        return self.config.num_classes

    def compile_blocks(self, token_budget: int = 0) -> None:
        """Fuses the element-wise work of the blocks with torch.compile, once for all blocks and any number of tokens.

        token_budget: in training, sequences below it get a tail up to it, of images that are kept out of every result:
        all steps then have one shape. `benchmarks/` has what it brings. Raises ValueError on a CPU without a C++
        compiler, which torch needs there.
        """
        compiler = os.environ.get("CXX", "g++")
        if self.final_layer.linear.weight.device.type == "cpu" and shutil.which(compiler) is None:
            raise UserError(f"torch.compile needs the C++ compiler {compiler} (Debian: g++), and it is not there")
        self.token_budget = token_budget
        for name in ("before_attention", "after_attention"):
            compiled = torch.compile(getattr(FiTBlock, name), dynamic=None if token_budget else True)
            for block in self.blocks:
                setattr(block, name, partial(compiled, block))

    def forward(
        self,
        batch: TokenBatch,
        t_B: Tensor,
        y_B: Tensor,
        rope: RopeScheme | None = None,
        context: TokenBatch | None = None,
        cache: BlockCache | None = None,
    ) -> Tensor:
        """batch.x (T, C), t (B,) float in [0, 1], y (B,) int64 in [0, num_classes] to the velocity (T, C).

        rope: how positions are turned in this call; None: as the configuration says. context: of each image, for a
        model with one. cache: for calls that follow each other in a sampling. Weights in half precision compute under
        autocast: norms, rotations and the residual stream stay float32. Raises ValueError where times, labels or
        contexts are not one per image, or the model takes no context.
        """
        if (context is None) != (self.config.context == "none") or (context and len(context) != len(batch)):
            given = "none" if context is None else f"{len(context)}"
            raise ValueError(f"context={self.config.context!r} in the model, and {given} given for {len(batch)} images")
        if len(t_B) != len(batch) or len(y_B) != len(batch):
            raise ValueError(f"{len(t_B)} times and {len(y_B)} labels for {len(batch)} images: give one of each")
        rope = rope or self.config.rope
        lengths = list(zip(batch.lengths, context.lengths if context else batch.lengths, strict=True))
        with autocast_in(self.final_layer.linear.weight.dtype, batch.x.device):
            # A graph is made for one mix of lengths anyway, and sorting numbers that it holds open cannot be traced.
            if torch.compiler.is_compiling() or all(shorter <= longer for shorter, longer in pairwise(lengths)):
                return self._forward_sorted(batch, t_B, y_B, rope, context, cache)
            # Sorted by length, images of equal length become neighbours, and attention needs few products.
            order = sorted(range(len(batch)), key=lengths.__getitem__)
            back = sorted(range(len(order)), key=order.__getitem__)
            index = batch.once(("order", *order), lambda: upload(torch.tensor(order), batch.x.device))
            batch, context = batch.select(order), context.select(order) if context else None
            x = self._forward_sorted(batch, t_B[index], y_B[index], rope, context, cache)
            return batch.with_x(x).select(back).x

    def _forward_sorted(
        self,
        batch: TokenBatch,
        t_B: Tensor,
        y_B: Tensor,
        rope: RopeScheme,
        context: TokenBatch | None,
        cache: BlockCache | None,
    ) -> Tensor:
        rows = batch.rows
        if self._shares_conditioning(t_B):
            t_B, y_B, row_B = distinct(t_B, y_B)
            rows = rows._replace(index=row_B[rows.index])
        c_BD = self.t_embedder(t_B) + self.y_embedder(y_B)
        # The residual stream stays float32 under autocast: sums of many small bfloat16 steps would lose them.
        sequence, positions, own = batch.with_x(self.x_embedder(batch.x).float()), batch.positions, None
        if context is not None:
            context = self.context_embedder(context)
        if self.config.context == "joint":
            c_BD = c_BD + context.image_mean(context.x)
            sequence, positions, own = join(sequence, context)
        head_dim = self.config.width // self.config.heads
        table = sequence.once(
            ("rotation", *batch.sizes, head_dim, rope),
            lambda: rotation_table(positions, sequence.image_index, batch.hw, head_dim, rope),
        )
        x_TD = self._blocks(sequence, table, c_BD, rows if own is None else sequence.rows, context, cache)
        # With a device map the last block may be on another device than the first.
        x_TD = x_TD if own is None else x_TD[own.to(x_TD.device, non_blocking=True)]
        return self.final_layer(x_TD, c_BD, rows)

    def _shares_conditioning(self, t_B: Tensor) -> bool:
        """Whether to look for images of equal time and label, as in sampling; on a GPU that would make it wait."""
        sampling = t_B.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        return sampling and self.config.context != "joint"

    def _blocks(
        self,
        batch: TokenBatch,
        table: tuple[Tensor, Tensor],
        c_BD: Tensor,
        rows: Rows,
        context: TokenBatch | None,
        cache: BlockCache | None,
    ) -> Tensor:
        tokens = len(batch.x)
        if tokens < self.token_budget and torch.is_grad_enabled():
            images, batch = len(batch), batch.with_tail(self.token_budget, LONGEST_IN_TAIL)
            added = len(batch) - images
            context = context and context.with_tail(len(context.x) + added, 1)
            rows, c_BD = batch.rows, F.pad(c_BD, (0, 0, 0, added))
            table = tuple(F.pad(side, (0, 0, 0, 0, 0, self.token_budget - tokens)) for side in table)
        shared = c_BD, self.global_adaLN_modulation(c_BD), rows, batch, table, context

        def through(blocks: nn.ModuleList, x_TD: Tensor) -> Tensor:
            for block in blocks:
                if self.activation_checkpointing and torch.is_grad_enabled():
                    x_TD = checkpoint(block, x_TD, *shared, use_reentrant=False)
                else:
                    x_TD = block(x_TD, *shared)
            return x_TD

        if cache is None:
            return through(self.blocks, batch.x)[:tokens]
        first, rest = self.blocks[:1], self.blocks[1:]
        return through(rest[-1:], cache.add(through(first, batch.x), partial(through, rest[:-1])))[:tokens]


def distinct(t_B: Tensor, y_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each pair of time and label once, (U,) both, and the row of each image's pair among them (B,)."""
    pairs_U2, row_B = torch.stack((t_B.double(), y_B.double()), 1).unique(dim=0, return_inverse=True)
    return pairs_U2[:, 0].to(t_B.dtype), pairs_U2[:, 1].to(y_B.dtype), row_B


def lay_out_by_input(model: nn.Module) -> None:
    """Turns the memory of linear layers' weights, for inference in bfloat16 on a CPU: products are a tenth faster.

    Shapes and values stay as they are; weights on another device are left alone.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and layer.weight.device.type == "cpu":
            layer.weight.data = layer.weight.data.t().contiguous().t()

"""FiTv2: a diffusion transformer over packed tokens of images of any size (arXiv 2410.13925, Sec. III).

Shape suffixes as in `fitv2.tokens`: T tokens, B images, C token channels, D width, and U distinct pairs of time and
label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..positions import even_positions
from ..tokens import RowOfToken, TokenBatch
from .block import BlockInputs, FiTBlock
from .config import FiTConfig, RopeScheme
from .context import ContextEmbedder, join
from .execution import Inputs, compile_blocks, distinct_conditioning, inverse, run_blocks, sorted_by_length
from .init import initialise_fit
from .layers import FinalLayer, LabelEmbedder, PatchEmbedder, TimestepEmbedder
from .modulation import projection
from .numerics import autocast_in
from .prediction import as_velocity
from .rope import rotation_table

# (U, D), the modulation (U, 6 D) that blocks share, and the row of each token in both.
Conditioning = tuple[Tensor, Tensor, RowOfToken]
Stage = tuple[Sequence[nn.Module], nn.Module | None, Conditioning]


class FiT(nn.Module):
    """The velocity network: (packed batch, t in [0, 1] with 1 = data, label) to one vector per token.

    Attributes:
        config: The configuration.
        activation_checkpointing: Whether blocks are recomputed in the backward pass.
        token_budget: See `compile_blocks`.
    """

    def __init__(self, config: FiTConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.token_budget = 0
        self.x_embedder = PatchEmbedder(config.token_channels, config.width)
        self.t_embedder = TimestepEmbedder(config.width)
        self.y_embedder = LabelEmbedder(config.num_classes, config.width)
        self.global_adaLN_modulation = None if config.modulation == "full" else projection(config.width, 6)
        self.blocks = nn.ModuleList(FiTBlock(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config.width, config.output_channels)
        wanted = config.internal_head is not None
        self.internal_layer = FinalLayer(config.width, config.output_channels) if wanted else None
        if config.context != "none":
            self.context_embedder = ContextEmbedder(config.context_channels, config.width)
        initialise_fit(self)

    @property
    def device(self) -> torch.device:
        """The device of the first weights, where the inputs go."""
        return self.x_embedder.proj.weight.device

    def compile_blocks(self, token_budget: int = 0) -> None:
        """Fuses the element-wise work of the blocks with torch.compile; `benchmarks/` has the speed.

        token_budget: In training, shorter sequences are padded to this length with dummy images that affect no result,
        so that all steps have one shape; 0 means no padding. Raises UserError on a CPU without a C++ compiler.
        """
        compile_blocks(self.blocks, self.device, fixed_shape=token_budget > 0)
        self.token_budget = token_budget

    def forward(
        self, batch: TokenBatch, t_B: Tensor, y_B: Tensor, context: TokenBatch | None = None, **options: Any
    ) -> Tensor:
        """Returns the output (T, output channels): the velocity, or for FiT the noise and its variance.

        Weights in half precision compute under autocast: norms, rotations and the residual stream stay float32.

        Args:
            batch: The images; this and the following as of `Inputs`.
            t_B: The time of each.
            y_B: The label of each.
            context: The context of each, for a model with one.
            **options: The other attributes of `Inputs`.

        Raises:
            ValueError: Not one time, label and context per image, or a cache for blocks in several stages.
        """
        self.check_inputs(batch, t_B, y_B, context)
        given = Inputs(batch, t_B, y_B, context, **options)
        inputs, order = sorted_by_length(given, joint=self.config.context == "joint")
        with autocast_in(self.final_layer.linear.weight.dtype, batch.x.device):
            context = inputs.context and self.context_embedder(inputs.context)
            sequence, own, table = self.embedded(inputs, context)
            x_TD, heads = sequence.x, []
            for blocks, head, (c_UD, c_U6D, row_of_token) in self.stages(inputs, context):
                seen = row_of_token if own is None else sequence.row_of_token
                about = BlockInputs(c_UD, c_U6D, seen, sequence, table, context)
                x_TD = run_blocks(blocks, x_TD, about, inputs.cache, self.token_budget, self.activation_checkpointing)
                if head is not None:
                    # With a device map the last block may be on another device than the first.
                    own_TD = x_TD if own is None else x_TD[own.to(x_TD.device, non_blocking=True)]
                    heads.append(head(own_TD, c_UD, row_of_token))
            output_TC = as_velocity(torch.cat(heads[::-1], dim=1), inputs.batch, inputs.t_B, self.config)
        return output_TC if order is None else inputs.batch.with_x(output_TC).select(inverse(order)).x

    def embedded(
        self, inputs: Inputs, context: TokenBatch | None
    ) -> tuple[TokenBatch, Tensor | None, tuple[Tensor, Tensor]]:
        """Returns the sequence of the blocks, which of its tokens are the images' (None: all), and their rotations."""
        batch, positions_T2 = inputs.batch, inputs.positions_T2
        # The residual stream stays float32 under autocast: sums of many small bfloat16 steps would lose them.
        sequence, own = batch.with_x(self.x_embedder(batch.x).float()), None
        places_T2 = self.places(batch) if positions_T2 is None else positions_T2
        if self.config.context == "joint" and context:
            sequence, places_T2, own = join(sequence, places_T2, context)
        rope, kept = inputs.rope or self.config.rope, positions_T2 is None
        return sequence, own, self.rotations(sequence, batch, rope, places_T2, kept)

    def stages(self, inputs: Inputs, context: TokenBatch | None) -> list[Stage]:
        """Returns blocks that follow one another, the head after the last of them, and the conditioning they see.

        Raises ValueError for a cache that several stages would share.
        """
        batch, t_B, y_B = inputs[:3]
        blocks, config, target_B = list(self.blocks), self.config, inputs.target_B
        now = self.conditioning(batch, t_B, y_B, context)
        stages: list[Stage] = [(blocks, self.final_layer, now)]
        if inputs.internal and config.internal_head is not None:
            first, last = blocks[: config.internal_head], blocks[config.internal_head :]
            stages = [(first, self.internal_layer, now), (last, self.final_layer, now)]
        elif target_B is not None and config.target_blocks:
            first, last = blocks[: -config.target_blocks], blocks[-config.target_blocks :]
            then = self.conditioning(batch, target_B, y_B, context)
            stages = [(first, None, now), (last, self.final_layer, then)]
        if inputs.cache is not None and len(stages) > 1:
            raise ValueError("a cache reuses what all inner blocks add, and here they are in several stages")
        return stages

    def conditioning(self, batch: TokenBatch, t_B: Tensor, y_B: Tensor, context: TokenBatch | None) -> Conditioning:
        """Returns the conditioning (U, D), the modulation (U, 6 D) that blocks share, and the row of each token."""
        joint = self.config.context == "joint"
        t_U, y_U, row_of_token = (t_B, y_B, batch.row_of_token) if joint else distinct_conditioning(batch, t_B, y_B)
        c_UD = self.t_embedder(t_U) + self.y_embedder(y_U)
        if joint and context:
            c_UD = c_UD + context.image_mean(context.x)
        shared = self.global_adaLN_modulation
        return c_UD, torch.zeros_like(c_UD).repeat(1, 6) if shared is None else shared(c_UD), row_of_token

    def check_inputs(self, batch: TokenBatch, t_B: Tensor, y_B: Tensor, context: TokenBatch | None) -> None:
        """Raises ValueError unless there are one time, label and, for a model with one, context per image."""
        if (context is None) != (self.config.context == "none") or (context and len(context) != len(batch)):
            given = "none" if context is None else f"{len(context)}"
            raise ValueError(f"context={self.config.context!r} in the model, and {given} given for {len(batch)} images")
        if len(t_B) != len(batch) or len(y_B) != len(batch):
            raise ValueError(f"{len(t_B)} times and {len(y_B)} labels for {len(batch)} images: give one of each")

    def places(self, batch: TokenBatch) -> Tensor:
        """Returns the (row, column) of every token (T, 2) that follows from the sizes of the images."""
        spread = self.config.position_range
        return batch.positions if spread is None else even_positions(batch, spread)

    def rotations(
        self, sequence: TokenBatch, batch: TokenBatch, rope: RopeScheme, places_T2: Tensor, kept: bool
    ) -> tuple[Tensor, Tensor]:
        """Returns the rotation of every token of the sequence.

        kept: whether the places follow from the sizes, so that images of the same sizes have the same rotations.
        """
        config = self.config

        def make() -> tuple[Tensor, Tensor]:
            return rotation_table(places_T2, sequence.image_index, batch.hw, config.head_dim, rope)

        key = "rotation", *batch.sizes, config.head_dim, config.position_range, rope
        return sequence.cached(key, make) if kept else make()

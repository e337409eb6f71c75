"""FiTv2: a diffusion transformer over packed tokens of images of any size (arXiv 2410.13925, Sec. III).

Shape suffixes as in `fitv2.tokens`: T tokens, B images, C token channels, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..tokens import TokenBatch
from .block import BlockInputs, FiTBlock
from .compute import autocast_in
from .config import FiTConfig, RopeScheme
from .context import ContextEmbedder, join
from .execution import Cache, compile_blocks, distinct_conditioning, inverse, run_blocks, sorted_by_length
from .init import initialise_fit
from .layers import FinalLayer, LabelEmbedder, PatchEmbedder, TimestepEmbedder
from .modulation import projection
from .rope import rotation_table


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
        if config.context != "none":
            self.context_embedder = ContextEmbedder(config.context_channels, config.width)
        initialise_fit(self)

    @property
    def device(self) -> torch.device:
        """The device of the first weights, where the inputs go."""
        return self.x_embedder.proj.weight.device

    def compile_blocks(self, token_budget: int = 0) -> None:
        """Fuses the element-wise work of the blocks with torch.compile; `benchmarks/` has the speed.

        token_budget: In training, shorter sequences get a tail up to it, of images that are kept out of every result:
        all steps then have one shape. Raises UserError on a CPU without a C++ compiler.
        """
        compile_blocks(self.blocks, self.device, fixed_shape=token_budget > 0)
        self.token_budget = token_budget

    def forward(
        self,
        batch: TokenBatch,
        t_B: Tensor,
        y_B: Tensor,
        context: TokenBatch | None = None,
        rope: RopeScheme | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Returns the output (T, output channels): the velocity, or for FiT the noise and its variance.

        Weights in half precision compute under autocast: norms, rotations and the residual stream stay float32.

        Args:
            batch: The images; x is (T, C).
            t_B: (B,) float in [0, 1], or steps in [0, 999] for a model of noise.
            y_B: (B,) int64 in [0, num_classes].
            context: The context of each image, for a model with one.
            rope: The RoPE scheme; None means that of the configuration.
            cache: The state that successive calls of a sampling share.

        Raises:
            ValueError: Not one time, label and context per image.
        """
        if (context is None) != (self.config.context == "none") or (context and len(context) != len(batch)):
            given = "none" if context is None else f"{len(context)}"
            raise ValueError(f"context={self.config.context!r} in the model, and {given} given for {len(batch)} images")
        if len(t_B) != len(batch) or len(y_B) != len(batch):
            raise ValueError(f"{len(t_B)} times and {len(y_B)} labels for {len(batch)} images: give one of each")
        batch, t_B, y_B, context, order = sorted_by_length(batch, t_B, y_B, context)
        rope, joint = rope or self.config.rope, self.config.context == "joint"
        with autocast_in(self.final_layer.linear.weight.dtype, batch.x.device):
            t_B, y_B, rows = (t_B, y_B, batch.rows) if joint else distinct_conditioning(batch, t_B, y_B)
            c_BD = self.t_embedder(t_B) + self.y_embedder(y_B)
            # The residual stream stays float32 under autocast: sums of many small bfloat16 steps would lose them.
            sequence, positions, own = batch.with_x(self.x_embedder(batch.x).float()), batch.positions, None
            context = context and self.context_embedder(context)
            if joint and context:
                c_BD = c_BD + context.image_mean(context.x)
                sequence, positions, own = join(sequence, context)
            table = sequence.once(
                ("rotation", *batch.sizes, self.config.head_dim, rope),
                lambda: rotation_table(positions, sequence.image_index, batch.hw, self.config.head_dim, rope),
            )
            shared = self.global_adaLN_modulation
            c_B6D = torch.zeros_like(c_BD).repeat(1, 6) if shared is None else shared(c_BD)
            inputs = BlockInputs(c_BD, c_B6D, sequence.rows if joint else rows, sequence, table, context)
            x_TD = run_blocks(self.blocks, sequence.x, inputs, cache, self.token_budget, self.activation_checkpointing)
            # With a device map the last block may be on another device than the first.
            x_TD = x_TD if own is None else x_TD[own.to(x_TD.device, non_blocking=True)]
            output_TC = self.final_layer(x_TD, c_BD, rows)
        return output_TC if order is None else batch.with_x(output_TC).select(inverse(order)).x

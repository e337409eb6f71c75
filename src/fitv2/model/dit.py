"""The baselines of a fixed grid, DiT (arXiv 2212.09748) and SiT (2401.08740), behind the interface of `FiT`.

One network: DiT predicts noise, SiT a velocity. It is that of diffusers, with one embedder of time and class for all
blocks and with the authors' initial values. Positions are a fixed table of sines and cosines, so every image has to be
of one square size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..tokens import TokenBatch, patchify
from .config import RopeScheme, SiTConfig
from .execution import Cache
from .init import dit_modulations, initialise_dit
from .numerics import autocast_in
from .prediction import as_velocity


def build_dit(config: SiTConfig) -> Any:
    """Returns diffusers' network over latents (B, c, h, w), with one embedder for all blocks; it drops no label."""
    # Takes long to load, and few runs need it.
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    dit: Any = DiTTransformer2DModel(
        num_attention_heads=config.heads,
        attention_head_dim=config.width // config.heads,
        in_channels=config.in_channels,
        out_channels=config.output_channels // config.patch_size**2,
        num_layers=config.depth,
        sample_size=config.side * config.patch_size,
        patch_size=config.patch_size,
        num_embeds_ada_norm=config.num_classes,
    )
    first, *others = dit.transformer_blocks
    first.norm1.emb.class_embedder.dropout_prob = 0.0  # That is the work of the objective; the row of no class stays.
    for block in others:
        del block.norm1.emb
        block.norm1.emb = first.norm1.emb.forward  # No module of theirs, so that its weights have one name.
    return dit


def _in_float32(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.float()


class DiT(nn.Module):
    """The network over packed tokens of images that are all of `config.fixed_grid`."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        self.config = config
        self.dit = build_dit(config)
        initialise_dit(self.dit)
        # Under autocast the residual stream and what it is multiplied with stay float32, as in FiT.
        for part in (self.dit.pos_embed, *dit_modulations(self.dit)):
            part.register_forward_hook(_in_float32)
        if self.dit.pos_embed.pos_embed.is_meta:  # No file holds the table: weights may come later, it is there.
            from diffusers.models.embeddings import get_2d_sincos_pos_embed

            with torch.device("cpu"):
                table = get_2d_sincos_pos_embed(config.width, config.side, base_size=config.side, output_type="pt")
            self.dit.pos_embed.pos_embed = table.float()[None]

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.dit.proj_out_2.weight.device

    @property
    def activation_checkpointing(self) -> bool:
        """Whether blocks are recomputed in the backward pass."""
        return self.dit.gradient_checkpointing

    @activation_checkpointing.setter
    def activation_checkpointing(self, wanted: bool) -> None:
        self.dit.enable_gradient_checkpointing() if wanted else self.dit.disable_gradient_checkpointing()

    def forward(
        self,
        batch: TokenBatch,
        t_B: Tensor,
        y_B: Tensor,
        context: TokenBatch | None = None,
        rope: RopeScheme | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Returns the output (T, output channels): SiT's velocity, or DiT's noise and its variance.

        The arguments are those of `FiT.forward`. Raises ValueError for an image that is not of `config.fixed_grid`, and
        for context, rope or cache.
        """
        if not (rope is None and context is None and cache is None):
            raise ValueError("a model of a fixed grid has no rope, no context and no cache of blocks")
        if set(batch.sizes) != {self.config.fixed_grid}:
            side = self.config.side
            raise ValueError(f"every image of this model has {side}x{side} tokens, and these have {batch.sizes}")
        images = torch.stack(batch.to_latents(self.config.patch_size))
        with autocast_in(self.dit.proj_out_2.weight.dtype, images.device):
            output = self.dit(images, timestep=t_B, class_labels=y_B).sample
        output_TC = torch.cat([patchify(latent, self.config.patch_size) for latent in output])
        return as_velocity(output_TC, batch, t_B, self.config)

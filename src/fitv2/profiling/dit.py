"""The backbone of DiT (arXiv 2212.09748) and SiT (2401.08740), with which FiTv2 compares: counted, never run.

The network is that of diffusers, on the meta device. There each block embeds time and class anew; here, as in the
authors' code, one embedder serves all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..model.cost import attention_flops, linear_macs_of

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel

# Linear layers that act once per image, by what is in their names.
PER_IMAGE = ("norm1", "proj_out_1")


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """in_channels: of latents. out_channels: 8 with the noise's variance (DiT), 4 for a velocity (SiT)."""

    width: int
    depth: int
    heads: int
    out_channels: int
    in_channels: int = 4
    patch_size: int = 2


OUT_CHANNELS = {"DiT": 8, "SiT": 4}
SIZES = {
    "B/2": {"width": 768, "depth": 12, "heads": 12},
    "L/2": {"width": 1024, "depth": 24, "heads": 16},
    "XL/2": {"width": 1152, "depth": 28, "heads": 16},
}
BASELINES = {
    f"{kind}-{size}": DiTConfig(**numbers, out_channels=channels)
    for kind, channels in OUT_CHANNELS.items()
    for size, numbers in SIZES.items()
}


def build(config: DiTConfig) -> DiTTransformer2DModel:
    """The network without memory for its weights."""
    from diffusers import DiTTransformer2DModel

    with torch.device("meta"):
        model = DiTTransformer2DModel(
            num_attention_heads=config.heads,
            attention_head_dim=config.width // config.heads,
            num_layers=config.depth,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            patch_size=config.patch_size,
        )
    first, *others = model.transformer_blocks
    for block in others:
        block.norm1.emb = first.norm1.emb
    return model


def parameters(config: DiTConfig) -> int:
    """Number of weights that are trained; positions are a fixed table."""
    return sum(p.numel() for p in build(config).parameters())


def linear_macs(config: DiTConfig, lengths: Sequence[int]) -> int:
    """Multiply-accumulates of linear layers in one forward of images of these token counts."""
    return linear_macs_of(build(config), PER_IMAGE, lengths)


def forward_flops(config: DiTConfig, lengths: Sequence[int]) -> int:
    """Operations of matrix products in it, attention included; a multiply-add counts two."""
    return 2 * linear_macs(config, lengths) + attention_flops(config, lengths)

"""The network that is trained, the scale of its latents, and the folder that diffusers loads."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors import SafetensorError
from torch import Tensor

from ..settings.autoencoder import GROUPS, AutoencoderSettings
from ..system.atomic import begin_folder, finish_folder, flush

# Larger images are decoded in tiles of this side (see `fitv2.images.autoencoder`).
TILE = 512


def build_autoencoder(settings: AutoencoderSettings) -> AutoencoderKL:
    """Returns a network with random weights, of torch's global generator.

    It has no attention: that costs the square of the size, and a network of convolutions alone sees no size at all.
    """
    count = len(settings.widths)
    blocks: dict[str, Any] = {"block_out_channels": settings.widths}
    blocks |= {"down_block_types": ("DownEncoderBlock2D",) * count, "up_block_types": ("UpDecoderBlock2D",) * count}
    return AutoencoderKL(
        **blocks,
        layers_per_block=settings.layers,
        latent_channels=settings.latent_channels,
        norm_num_groups=GROUPS,
        sample_size=TILE,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


@torch.no_grad()
def latent_statistics(network: Any, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation of each channel of the latents, (C,) float64 on the CPU.

    They are of latents drawn from the posteriors, over all images and places.

    Args:
        network: An AutoencoderKL.
        batches: Images (B, 3, H, W) in [-1, 1], on the network's device.
    """
    total = torch.zeros(3, network.config.latent_channels, dtype=torch.float64)
    count = 0
    for images in batches:
        posterior = network.encode(images).latent_dist
        mean, variance = posterior.mean.double().cpu(), posterior.var.double().cpu()
        total += torch.stack([part.sum((0, 2, 3)) for part in (mean, mean.square(), variance)])
        count += mean[:, 0].numel()
    mean, square, variance = total / count
    return mean, (square - mean.square() + variance).sqrt()


def write_autoencoder(
    folder: Path, network: Any, weights: Mapping[str, Tensor], mean: list[float], std: list[float]
) -> None:
    """Writes a folder for `AutoencoderKL.from_pretrained`: float16 weights, and latents_mean and latents_std.

    Args:
        folder: It is complete or absent at any moment.
        network: The AutoencoderKL whose configuration is written.
        weights: What is written in place of its own weights, by name.
        mean, std: Of each channel of its latents; std positive.
    """
    written: Any = AutoencoderKL.from_config(network.config)
    written.load_state_dict(weights)
    written.register_to_config(latents_mean=mean, latents_std=std)
    draft = begin_folder(folder)
    try:
        written.half().save_pretrained(draft)
        for file in draft.iterdir():
            flush(file)
        finish_folder(folder)
    except SafetensorError as error:
        raise OSError(f"{folder}: {error}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)

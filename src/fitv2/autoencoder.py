"""Between latents and pictures: pixels as they are, or a KL autoencoder as diffusers has it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

# Larger pictures are decoded in overlapping tiles: at once their activations take tens of gigabytes.
LARGEST_UNTILED = 1024 * 1024


class Pixels:
    """Latents that are pixels in [-1, 1]."""

    factor = 1

    def decode(self, latent: Tensor) -> Tensor:
        return latent


class KLAutoencoder:
    """An AutoencoderKL of diffusers, computing on `device`, wherever offloading keeps its weights meanwhile.

    factor: picture pixels per latent pixel on each axis.
    """

    def __init__(self, network: AutoencoderKL, device: torch.device | str) -> None:
        self.network, self.device = network.eval(), device
        self.factor = 2 ** (len(network.config.block_out_channels) - 1)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """(c, h, w) as the transformer gives it to (3, h * factor, w * factor) in about [-1, 1], float32 on the CPU.

        Scaling and shift are those of the autoencoder's own configuration.
        """
        config, tiled = self.network.config, self.network.use_tiling
        unscaled = latent.float() / config.scaling_factor + (config.shift_factor or 0)
        if latent.shape[1] * latent.shape[2] * self.factor**2 > LARGEST_UNTILED:
            self.network.enable_tiling()
        try:
            sample = self.network.decode(unscaled[None].to(self.device, self.network.dtype)).sample
        finally:
            self.network.use_tiling = tiled
        return sample[0].float().cpu()


def load_autoencoder(
    name: str | None, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Pixels | KLAutoencoder:
    """The autoencoder of a folder (also a pipeline's, with it in `vae`) or a hub id; None: pixels.

    Raises ValueError when there is none.
    """
    if name is None:
        return Pixels()
    from diffusers import AutoencoderKL

    subfolder = "vae" if (Path(name) / "vae").is_dir() else None
    try:
        network = AutoencoderKL.from_pretrained(name, subfolder=subfolder, torch_dtype=dtype)
        return KLAutoencoder(network.to(device), device)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the autoencoder {name} cannot be loaded; name its folder instead ({reason})") from None

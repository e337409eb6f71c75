"""Between latents and pictures: pixels as they are, or a KL autoencoder as diffusers has it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import UserError
from .state_files import weights_digest

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

# Larger pictures are decoded in overlapping tiles: at once their activations take tens of gigabytes.
LARGEST_UNTILED = 1024 * 1024


class Pixels:
    """Latents that are pixels in [-1, 1], of any number of channels."""

    factor = 1
    channels = None

    def decode(self, latent: Tensor) -> Tensor:
        return latent

    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, which is zero, of each latent."""
        return pictures, torch.zeros_like(pictures)


class KLAutoencoder:
    """An AutoencoderKL of diffusers, computing on `device`, wherever offloading keeps its weights meanwhile.

    factor: picture pixels per latent pixel on each axis. channels: of a latent.
    """

    def __init__(self, network: AutoencoderKL, device: torch.device | str) -> None:
        self.network, self.device = network.eval(), device
        self.channels: int = network.config.latent_channels
        self.factor = factor_of(network.config)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """(c, h, w) as the transformer gives it to (3, h * factor, w * factor) in about [-1, 1], float32 on the CPU.

        Scaling and shift are those of the autoencoder's own configuration.
        """
        config = self.network.config
        unscaled = latent.float() / config.scaling_factor + (config.shift_factor or 0)
        with self._tiles(latent.shape[1] * latent.shape[2] * self.factor**2):
            sample = self.network.decode(unscaled[None].to(self.device, self.network.dtype)).sample
        return sample[0].float().cpu()

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, h * factor, w * factor) in [-1, 1] to the mean and the standard deviation of their latents, as the
        transformer takes them: each (B, c, h, w), float32 on the CPU. Latents are drawn as mean + std * noise.
        """
        config = self.network.config
        with self._tiles(pictures.shape[2] * pictures.shape[3]):
            posterior = self.network.encode(pictures.to(self.device, self.network.dtype)).latent_dist
        mean = (posterior.mean.float() - (config.shift_factor or 0)) * config.scaling_factor
        return mean.cpu(), (posterior.std.float() * config.scaling_factor).cpu()

    def digest(self) -> str:
        """SHA-256 over configuration and weights, wherever they were loaded from."""
        config = {key: value for key, value in self.network.config.items() if not key.startswith("_")}
        return weights_digest(self.network.state_dict(), json.dumps(config, sort_keys=True, default=str))

    @contextmanager
    def _tiles(self, pixels: int) -> Iterator[None]:
        """Tiles within, for pictures of more pixels than fit at once."""
        tiled = self.network.use_tiling
        if pixels > LARGEST_UNTILED:
            self.network.enable_tiling()
        try:
            yield
        finally:
            self.network.use_tiling = tiled


def load_autoencoder(
    name: str | None, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Pixels | KLAutoencoder:
    """The autoencoder of a folder (also a pipeline's, with it in `vae`) or a hub id; None: pixels.

    Raises ValueError when there is none.
    """
    if name is None:
        return Pixels()
    from diffusers import AutoencoderKL

    with told_in_one_sentence(name):
        network = AutoencoderKL.from_pretrained(name, subfolder=subfolder_of(name), torch_dtype=dtype)
        return KLAutoencoder(network.to(device), device)


def read_factor(name: str | None) -> int:
    """Picture pixels per latent pixel on each axis of the autoencoder of that name, from its configuration alone."""
    if name is None:
        return Pixels.factor
    from diffusers import AutoencoderKL

    with told_in_one_sentence(name):
        return factor_of(AutoencoderKL.load_config(name, subfolder=subfolder_of(name)))


def factor_of(config: Mapping[str, Any]) -> int:
    """Each block but the last halves both sides."""
    return 2 ** (len(config["block_out_channels"]) - 1)


def subfolder_of(name: str) -> str | None:
    return "vae" if (Path(name) / "vae").is_dir() else None


@contextmanager
def told_in_one_sentence(name: str) -> Iterator[None]:
    """Whatever the library says of an autoencoder that is not there."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the autoencoder {name} cannot be loaded; name its folder instead ({reason})") from None

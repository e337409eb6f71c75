"""Between latents and images: pixels as they are, or an autoencoder as diffusers has it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..checkpoints.model_folder import VAE
from ..checkpoints.state_dict import weights_digest
from ..errors import UserError, loading
from ..finite import check_finite, check_weights

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    Network = AutoencoderKL | AutoencoderDC

# Larger images are decoded in overlapping tiles: at once their activations take tens of gigabytes.
LARGEST_UNTILED = 1024 * 1024
DECODING_CURES = "try --precision fp32 (an autoencoder in float32), or another copy of the autoencoder"


class Pixels:
    """Latents that are pixels in [-1, 1], of any number of channels."""

    factor, channels = 1, None

    def decode(self, latent: Tensor) -> Tensor:
        return latent

    decode_batch = decode

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and standard deviation, which is zero, of each latent."""
        return images, torch.zeros_like(images)


class LatentCodec:
    """An autoencoder of diffusers, computing on `device`, wherever offloading keeps its weights meanwhile.

    factor: image pixels per latent pixel on each axis. channels: of a latent. shift, scale: (c, 1, 1), of `scaling_of`.
    """

    def __init__(self, network: Network, device: torch.device | str) -> None:
        self.network: Any = network.eval()
        self.device = device
        self.channels: int = self.network.config.latent_channels
        self.factor = _factor_of(self.network.config)
        self.shift, self.scale = scaling_of(self.network.config)

    def decode(self, latent: Tensor) -> Tensor:
        """Decodes (c, h, w) of the transformer to (3, h * factor, w * factor) in about [-1, 1], float32 on the CPU.

        Scaling and shift are those of the autoencoder's own configuration. Raises NotFinite for NaN or infinity.
        """
        return self.decode_batch(latent[None])[0]

    @torch.no_grad()
    def decode_batch(self, latents: Tensor) -> Tensor:
        """Decodes (B, c, h, w) in one pass, like `decode`."""
        raw = latents.float() / self.scale.to(latents.device) + self.shift.to(latents.device)
        with self._passing(latents.shape[2] * latents.shape[3] * self.factor**2) as dtype:
            sample = self.network.decode(raw.to(self.device, dtype)).sample
        images = sample.float().cpu()
        check_finite(images, "what the autoencoder made of a latent", DECODING_CURES)
        return images

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes images (B, 3, h * factor, w * factor) in [-1, 1] to the moments of their latents, scaled and shifted.

        Returns mean and standard deviation, each (B, c, h, w) float32 on the CPU; the latter is zero where encoding
        draws nothing, as in an AutoencoderDC. Raises NotFinite for NaN or infinity, and UserError for other sides.
        """
        height, width = images.shape[2:]
        if height % self.factor or width % self.factor:
            raise UserError(
                f"this autoencoder takes sides that are multiples of {self.factor} pixels, not {height}x{width}: crop, "
                "resize or pad the image"
            )
        with self._passing(height * width) as dtype:
            encoded = self.network.encode(images.to(self.device, dtype))
        if hasattr(encoded, "latent_dist"):
            raw, std = encoded.latent_dist.mean.float().cpu(), encoded.latent_dist.std.float().cpu()
        else:
            raw = encoded.latent.float().cpu()
            std = torch.zeros_like(raw)
        mean, std = (raw - self.shift) * self.scale, std * self.scale
        for moment in (mean, std):
            check_finite(moment, "what the autoencoder made of an image", DECODING_CURES)
        return mean, std

    def digest(self) -> str:
        """Returns the SHA-256 of configuration and weights, wherever they were loaded from."""
        config = {key: value for key, value in self.network.config.items() if not key.startswith("_")}
        return weights_digest(self.network.state_dict(), json.dumps(config, sort_keys=True, default=str))

    @contextmanager
    def _passing(self, pixels: int) -> Iterator[torch.dtype]:
        """Prepares the network for a pass over images of that many pixels, and yields the precision of the pass.

        float16 overflows in autoencoders whose configuration has force_upcast; large images go through in tiles.
        """
        own, tiled = self.network.dtype, self.network.use_tiling
        upcast = own == torch.float16 and self.network.config.get("force_upcast", True)
        if pixels > LARGEST_UNTILED:
            self.network.enable_tiling()
        try:
            if upcast:
                self.network.to(torch.float32)
            yield torch.float32 if upcast else own
        finally:
            self.network.use_tiling = tiled
            if upcast:
                self.network.to(own)


def scaling_of(config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Returns shift and scale, (c, 1, 1) float32: the transformer's latents are (raw - shift) * scale.

    As in diffusers' own pipelines: latents_mean and latents_std of each channel if the configuration has them, else
    shift_factor; and scaling_factor. Raises UserError if they do not fit the number of channels.
    """
    channels, factor = config["latent_channels"], torch.full((config["latent_channels"],), config["scaling_factor"])
    shift = torch.full((channels,), float(config.get("shift_factor") or 0))
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        shift, std = torch.tensor(config["latents_mean"]).float(), torch.tensor(config["latents_std"]).float()
        if not len(shift) == len(std) == channels or not (std > 0).all():
            raise UserError(
                f"latents_mean and latents_std of the autoencoder must be {channels} numbers each, one a channel, and "
                "the latter positive: correct its config.json"
            )
        factor = factor / std
    return shift[:, None, None], factor[:, None, None]


def load_autoencoder(name: str | None, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Pixels | LatentCodec:
    """Loads the autoencoder of a folder (also that of a pipeline, in `vae`) or a hub id; for None, returns `Pixels`.

    Raises UserError if there is none.
    """
    if name is None:
        return Pixels()
    with loading(f"the autoencoder {name}"):
        network = read_network(name, _subfolder(name), dtype)
        return LatentCodec(cast(Any, network).to(device), device)


def network_classes() -> dict[str, Any]:
    """Returns the classes of autoencoders whose latents are known here, by name."""
    from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderDC)}


def read_network(name: str, subfolder: str | None, dtype: torch.dtype, **options) -> Network:
    """Loads the network itself; options: of diffusers, such as `variant`.

    Raises UserError for another class of autoencoder and for weights that are not all its own, NotFinite for NaN.
    """
    kind, _ = _read_config(name, subfolder)
    network, _ = loaded(kind.from_pretrained, name, subfolder=subfolder, dtype=dtype, **options)
    check_weights(network.state_dict(), name)
    return network


def _read_config(name: str, subfolder: str | None) -> tuple[Any, Mapping[str, Any]]:
    """Returns the class and the configuration of an autoencoder.

    Raises UserError for a class that is not known, and for a name that can be neither a folder nor a hub id: the hub
    would be asked for minutes.
    """
    if "/" not in name and not Path(name).is_dir():
        raise UserError(f"there is no folder {name}; the name of an autoencoder on the hub has the form OWNER/NAME")
    known = network_classes()
    config = next(iter(known.values())).load_config(name, subfolder=subfolder)
    kind = config.get("_class_name", "AutoencoderKL")
    if kind not in known:
        raise UserError(
            f"{name} is an {kind}, and latents here are those of an {' or '.join(known)}; name one of these"
        )
    return known[kind], config


def loaded(load: Callable, name: str, **options) -> tuple[Any, Mapping[str, Any]]:
    """Returns the network that diffusers loads, and its loading info.

    Raises UserError for missing and extra weights, and those of other shapes.
    """
    try:
        network, found = load(name, output_loading_info=True, **options)
    except ValueError as error:
        if "expected shape" not in str(error):
            raise
        problem = str(error).partition("because ")[2].partition(". If you")[0]
        raise UserError(f"the weights of {name} do not fit its config.json: {problem}") from error
    problems = [f"missing {key}" for key in sorted(found["missing_keys"])]
    problems += [f"unexpected {key}" for key in sorted(found["unexpected_keys"])]
    problems += [f"{key} has shape {tuple(has)}, not {tuple(own)}" for key, has, own in found["mismatched_keys"]]
    if problems:
        raise UserError(f"the weights of {name} do not fit its config.json: {'; '.join(problems)}")
    return network, found


def read_factor(name: str | None) -> int:
    """Returns the image pixels per latent pixel on each axis, from the autoencoder's configuration alone."""
    if name is None:
        return Pixels.factor
    with loading(f"the autoencoder {name}"):
        return _factor_of(_read_config(name, _subfolder(name))[1])


def _factor_of(config: Mapping[str, Any]) -> int:
    """Returns the image pixels per latent pixel: each block but the last halves both sides."""
    blocks = config.get("block_out_channels") or config["encoder_block_out_channels"]
    return 2 ** (len(blocks) - 1)


def _subfolder(name: str) -> str | None:
    """Returns where in a folder the autoencoder is, if not at its top."""
    return VAE if (Path(name) / VAE).is_dir() else None

"""From what a user asks for to an encoder and the settings that describe what it stores."""

from __future__ import annotations

from pathlib import Path

from ..autoencoder import KLAutoencoder, load_autoencoder
from ..data.images import Preprocessing, fit_size, variants
from ..data.prepared import DECODING, Preparation
from ..errors import UserError
from .encode import MomentEncoder, PixelEncoder

PIXELS = "pixels"


def build_encoder(
    autoencoder: str,
    max_tokens: int,
    patch_size: int,
    preprocessing: Preprocessing,
    flip: bool,
    channels: int | None,
    device: str,
) -> tuple[PixelEncoder | MomentEncoder, Preparation]:
    """autoencoder: a folder, a hub id or "pixels"; channels: of pixels, None for 3. Raises ValueError where the
    settings fit no picture, or there is no such autoencoder.
    """
    fit_size(1, 1, max_tokens, patch_size)
    variants(1, 1, max_tokens, patch_size, preprocessing)
    asked = {"max_tokens": max_tokens, "patch_size": patch_size, "preprocessing": preprocessing, "flip": flip}
    asked["decoding"] = DECODING
    if autoencoder == PIXELS:
        if channels not in (None, 1, 3):
            raise UserError(f"pictures have 1 or 3 channels, not {channels}")
        return PixelEncoder(), Preparation(kind="pixels", channels=channels or 3, dtype="uint8", **asked)
    if channels is not None:
        raise UserError("--channels goes with --autoencoder pixels; an autoencoder takes colour and fixes its own")
    codec = load_autoencoder(autoencoder, device)
    return MomentEncoder(codec, flip), describe(codec, autoencoder, asked)


def describe(codec: KLAutoencoder, name: str, asked: dict) -> Preparation:
    config = codec.network.config
    return Preparation(
        kind="moments",
        dtype="float16",
        channels=config.latent_channels,
        factor=codec.factor,
        # The data set may be read from another working folder.
        autoencoder=str(Path(name).resolve()) if Path(name).exists() else name,
        autoencoder_sha256=codec.digest(),
        scaling_factor=config.scaling_factor,
        shift_factor=config.shift_factor or 0.0,
        **asked,
    )

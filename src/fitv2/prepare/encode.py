"""From the bytes of a file to the tensors that are stored: decoded, fitted to the budget, encoded with its like."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..autoencoder import KLAutoencoder, load_autoencoder
from ..data.decode import decode
from ..data.formats import UnreadableImage
from ..data.images import Preprocessing, cropped_share, fit_size, prepare, to_array, variants, why_unfit
from ..data.prepared import DECODING, Preparation
from ..errors import UserError
from ..finite import NotFinite

PIXELS = "pixels"
# Images of equal size share a pass through the autoencoder while together they have no more pixels than this.
PIXELS_PER_PASS = 8 * 256 * 256
# What becomes of an image: its size and that of each variant, or why it is skipped. And its variants, uint8.
Decoded = tuple[dict[str, Any], dict[str, np.ndarray]]


class PixelEncoder:
    """Stores pixels as they are."""

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Returns (B, 1, c, h, w) uint8 for (B, c, h, w) uint8."""
        return images[:, None]


class MomentEncoder:
    """Stores mean and deviation of the latents, with `flip` also those of the mirror images.

    A KL autoencoder is not equivariant to flips, so a mirrored latent would not be that of the mirror image.
    """

    def __init__(self, codec: KLAutoencoder, flip: bool) -> None:
        self.codec, self.flip = codec, flip

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Returns (B, flips, 2, c, h / factor, w / factor) float16 for (B, 3, h, w) uint8."""
        upright = torch.from_numpy(images).float() / 127.5 - 1
        faces = [upright, upright.flip(3)] if self.flip else [upright]
        return torch.stack([torch.stack(self.codec.encode(face), 1) for face in faces], 1).half().numpy()

    @property
    def not_finite(self) -> str:
        """What to do about an autoencoder whose latents are not finite."""
        network = self.codec.network
        name, precision = network.config.get("_name_or_path") or "given", str(network.dtype).removeprefix("torch.")
        cure = (
            "its weights are damaged or were saved in a precision that they do not fit into: get its float32 weights, "
            "or name another autoencoder"
            if network.dtype == torch.float32
            else "compute in float32, as force_upcast in its config.json asks for"
        )
        return (
            f"the autoencoder {name} gives latents that are not finite (NaN or infinity) in {precision}, so nothing "
            f"was stored: {cure}"
        )


Encoder = PixelEncoder | MomentEncoder


def build_encoder(
    autoencoder: str,
    max_tokens: int,
    patch_size: int,
    preprocessing: Preprocessing,
    flip: bool,
    channels: int | None,
    device: str,
) -> tuple[Encoder, Preparation]:
    """Returns the encoder that a user asks for, and the settings that describe what it stores.

    Args:
        autoencoder: A folder, a hub id or "pixels".
        channels: Of pixels, None for 3.

    Raises:
        UserError: The settings fit no image, or there is no such autoencoder.
    """
    fit_size(1, 1, max_tokens, patch_size)
    variants(1, 1, max_tokens, patch_size, preprocessing)
    asked: dict[str, Any] = {"max_tokens": max_tokens, "patch_size": patch_size, "preprocessing": preprocessing}
    asked |= {"flip": flip, "decoding": DECODING}
    if autoencoder == PIXELS:
        if channels not in (None, 1, 3):
            raise UserError(f"images have 1 or 3 channels, not {channels}")
        return PixelEncoder(), Preparation(kind="pixels", channels=channels or 3, dtype="uint8", **asked)
    if channels is not None:
        raise UserError("--channels goes with --autoencoder pixels; an autoencoder takes colour and fixes its own")
    codec = load_autoencoder(autoencoder, device)
    assert isinstance(codec, KLAutoencoder)
    config = codec.network.config
    return MomentEncoder(codec, flip), Preparation(
        kind="moments",
        dtype="float16",
        channels=config.latent_channels,
        factor=codec.factor,
        # The data set may be read from another working folder.
        autoencoder=str(Path(autoencoder).resolve()) if Path(autoencoder).exists() else autoencoder,
        autoencoder_sha256=codec.digest(),
        scaling_factor=config.scaling_factor,
        shift_factor=config.shift_factor or 0.0,
        **asked,
    )


def decode_variants(content: bytes, preparation: Preparation) -> Decoded:
    """Decodes the image in a file to the sizes of its variants."""
    budget = preparation.max_tokens, preparation.patch
    try:
        image = decode(io.BytesIO(content), preparation.mode)
    except UnreadableImage as error:
        return {"skipped": str(error)}, {}
    size = image.height, image.width
    if reason := why_unfit(*size, *budget, preparation.preprocessing):
        return {"skipped": reason}, {}
    possible = variants(*size, *budget, preparation.preprocessing)
    arrays = {variant: to_array(prepare(image, *budget, variant)) for variant in possible}
    stored: dict[str, Any] = {variant: {"size": list(array.shape[1:])} for variant, array in arrays.items()}
    if share := cropped_share(*size, tuple(stored["resize"]["size"])) if "resize" in stored else 0:
        stored["resize"]["cropped"] = share
    return {"size": list(size), "variants": stored}, {**arrays}


def encode_all(encoder: Encoder, images: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray | None]]:
    """Yields names and latents of all images, those of equal size together; None for latents that are not finite.

    Which images share a pass follows from their order alone: a pass of another number rounds otherwise. Raises
    UserError for an autoencoder that gives such numbers for every image.
    """
    waiting: dict[tuple[int, ...], list[tuple[str, np.ndarray]]] = {}
    for name, image in images:
        alike = waiting.setdefault(image.shape, [])
        alike.append((name, image))
        if (len(alike) + 1) * image.shape[1] * image.shape[2] > PIXELS_PER_PASS:
            yield from _encode_pass(encoder, waiting.pop(image.shape))
    for shape in sorted(waiting):
        yield from _encode_pass(encoder, waiting[shape])


def _encode_pass(encoder: Encoder, alike: list[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray | None]]:
    images = np.stack([image for _, image in alike])
    latents = _finite_latents(encoder, images)
    if isinstance(encoder, MomentEncoder) and any(latent is None for latent in latents):
        grey = np.full_like(images[:1], 128)
        if _finite_latents(encoder, grey)[0] is None:
            raise UserError(encoder.not_finite)
    yield from zip([name for name, _ in alike], latents, strict=True)


def _finite_latents(encoder: Encoder, images: np.ndarray) -> list[np.ndarray | None]:
    """The latents of each image, or None where they are not finite, also as the float16 that is stored."""
    try:
        with np.errstate(over="ignore"):
            latents = encoder.encode(images)
    except NotFinite:  # Of one image at least.
        return [None] if len(images) == 1 else [_finite_latents(encoder, image[None])[0] for image in images]
    return [latent if np.isfinite(latent).all() else None for latent in latents]

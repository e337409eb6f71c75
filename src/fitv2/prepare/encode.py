"""From the bytes of a file to the tensors that are stored: decoded, fitted to the token budget, encoded."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.decode import decode
from ..data.formats import UnreadableImage
from ..data.prepared import DECODING, Preparation
from ..data.preprocessing import Preprocessing, cropped_share, prepare, to_array, variants, why_unfit
from ..errors import UserError
from ..finite import NotFinite
from ..images.autoencoder import LatentCodec, load_autoencoder

PIXELS = "pixels"
# Images of equal size share a pass through the autoencoder up to this number of pixels.
PIXELS_PER_PASS = 8 * 256 * 256
# The size of an image and of each variant, or why it is skipped; and its variants, (c, h, w) uint8.
Decoded = tuple[dict[str, Any], dict[str, np.ndarray]]


# Images (B, c, h, w) uint8 to what is stored of them: pixels (B, 1, c, h, w) uint8, or moments, see `encode_moments`.
Encoder = Callable[[np.ndarray], np.ndarray]


def encode_moments(codec: LatentCodec, flip: bool, images: np.ndarray) -> np.ndarray:
    """Returns mean and standard deviation of the latents, with `flip` also those of the mirror images.

    An autoencoder is not equivariant to flips, so a mirrored latent would not be that of the mirror image.

    Args:
        images: (B, 3, h, w) uint8.

    Returns:
        (B, flips, 2, c, h / factor, w / factor) float16.
    """
    upright = torch.from_numpy(images).float() / 127.5 - 1
    faces = [upright, upright.flip(3)] if flip else [upright]
    return torch.stack([torch.stack(codec.encode(face), 1) for face in faces], 1).half().numpy()


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
        UserError: There is no such autoencoder, or the channels do not go with it.
    """
    asked: dict[str, Any] = {"max_tokens": max_tokens, "patch_size": patch_size, "preprocessing": preprocessing}
    asked |= {"flip": flip, "decoding": DECODING}
    if autoencoder == PIXELS:
        if channels not in (None, 1, 3):
            raise UserError(f"images have 1 or 3 channels, not {channels}")
        preparation = Preparation(kind="pixels", channels=channels or 3, dtype="uint8", **asked)
        return lambda images: images[:, None], preparation
    if channels is not None:
        raise UserError("--channels goes with --autoencoder pixels; an autoencoder takes colour and fixes its own")
    codec = load_autoencoder(autoencoder, device)
    assert isinstance(codec, LatentCodec)
    config = codec.network.config
    return partial(encode_moments, codec, flip), Preparation(
        kind="moments",
        dtype="float16",
        channels=config.latent_channels,
        factor=codec.factor,
        # Absolute: the data set may be read from another working directory.
        autoencoder=str(Path(autoencoder).resolve()) if Path(autoencoder).exists() else autoencoder,
        autoencoder_sha256=codec.digest(),
        scaling_factor=config.scaling_factor,
        shift_factor=config.get("shift_factor") or 0.0,
        **asked,
    )


def decode_variants(content: bytes, preparation: Preparation) -> Decoded:
    """Decodes the image in a file to the sizes of its variants."""
    budget, preprocessing = (preparation.max_tokens, preparation.patch), preparation.preprocessing
    try:
        image = decode(io.BytesIO(content), preparation.mode)
    except UnreadableImage as error:
        return {"skipped": str(error)}, {}
    size = image.height, image.width
    if reason := why_unfit(*size, *budget, preprocessing):
        return {"skipped": reason}, {}
    arrays: dict[str, np.ndarray] = {
        variant: to_array(prepare(image, *budget, variant)) for variant in variants(*size, *budget, preprocessing)
    }
    stored: dict[str, Any] = {variant: {"size": list(array.shape[1:])} for variant, array in arrays.items()}
    if share := cropped_share(*size, tuple(stored["resize"]["size"])) if "resize" in stored else 0:
        stored["resize"]["cropped"] = share
    return {"size": list(size), "variants": stored}, arrays


def encode_all(encoder: Encoder, images: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray | None]]:
    """Yields names and latents of all images, those of equal size together; None for latents that are not finite.

    Which images share a pass follows from their order alone, because passes of other sizes round differently.
    """

    def encoded(alike: list[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray | None]]:
        names, arrays = zip(*alike, strict=True)
        return zip(names, finite_latents(encoder, np.stack(arrays)), strict=True)

    waiting: dict[tuple[int, ...], list[tuple[str, np.ndarray]]] = {}
    for name, image in images:
        alike = waiting.setdefault(image.shape, [])
        alike.append((name, image))
        if (len(alike) + 1) * image.shape[1] * image.shape[2] > PIXELS_PER_PASS:
            yield from encoded(waiting.pop(image.shape))
    for shape in sorted(waiting):
        yield from encoded(waiting[shape])


def finite_latents(encoder: Encoder, images: np.ndarray) -> list[np.ndarray | None]:
    """Returns the latents of each image; None where they are not finite, also as the float16 that is stored."""
    try:
        with np.errstate(over="ignore"):
            latents = encoder(images)
    except NotFinite:  # Of one image at least.
        return [None] if len(images) == 1 else [finite_latents(encoder, image[None])[0] for image in images]
    return [latent if np.isfinite(latent).all() else None for latent in latents]

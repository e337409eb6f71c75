"""From the bytes of a file to the tensors that are stored: decoded, fitted to the budget, encoded with its like."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from ..autoencoder import KLAutoencoder
from ..data.images import UnreadableImage, decode, prepare, to_array, variants
from ..data.prepared import Preparation
from ..errors import UserError
from ..finite import NotFinite

# Pictures of equal size share a pass through the autoencoder while together they have no more pixels than this.
PIXELS_PER_PASS = 8 * 256 * 256
# What becomes of a picture: its size and that of each variant, or why it is skipped. And its variants, uint8.
Decoded = tuple[dict[str, Any], dict[str, np.ndarray]]


class PixelEncoder:
    """Pixels are stored as they are."""

    def encode(self, pictures: np.ndarray) -> np.ndarray:
        """(B, c, h, w) uint8 to (B, 1, c, h, w) uint8."""
        return pictures[:, None]


class MomentEncoder:
    """Mean and deviation of the latents, of the mirror images too with `flip`: an autoencoder sees them otherwise."""

    def __init__(self, codec: KLAutoencoder, flip: bool) -> None:
        self.codec, self.flip = codec, flip

    def encode(self, pictures: np.ndarray) -> np.ndarray:
        """(B, 3, h, w) uint8 to (B, flips, 2, c, h / factor, w / factor) float16."""
        upright = torch.from_numpy(pictures).float() / 127.5 - 1
        faces = [upright, upright.flip(3)] if self.flip else [upright]
        return torch.stack([torch.stack(self.codec.encode(face), 1) for face in faces], 1).half().numpy()


def decode_variants(content: bytes, preparation: Preparation) -> Decoded:
    """The picture in a file at the sizes of its variants."""
    budget = preparation.max_tokens, preparation.patch
    try:
        image = decode(io.BytesIO(content), preparation.mode)
    except UnreadableImage as error:
        return {"skipped": str(error)}, {}
    size = image.height, image.width
    possible = variants(*size, *budget, preparation.preprocessing)
    arrays = {variant: to_array(prepare(image, *budget, variant)) for variant in possible}
    stored = {variant: {"size": list(array.shape[1:])} for variant, array in arrays.items()}
    return {"size": list(size), "variants": stored}, arrays


def encode_all(
    encoder: PixelEncoder | MomentEncoder, pictures: Iterable[tuple[str, np.ndarray]]
) -> Iterator[tuple[str, np.ndarray | None]]:
    """Names and latents of all images, those of equal size together; None for latents that are not finite.

    Which images share a pass follows from their order alone: a pass of another number rounds otherwise. Raises
    UserError for an autoencoder that gives such numbers whatever it is shown.
    """
    waiting: dict[tuple[int, ...], list[tuple[str, np.ndarray]]] = {}
    for name, picture in pictures:
        alike = waiting.setdefault(picture.shape, [])
        alike.append((name, picture))
        if (len(alike) + 1) * picture.shape[1] * picture.shape[2] > PIXELS_PER_PASS:
            yield from encode_pass(encoder, waiting.pop(picture.shape))
    for shape in sorted(waiting):
        yield from encode_pass(encoder, waiting[shape])


def encode_pass(
    encoder: PixelEncoder | MomentEncoder, alike: list[tuple[str, np.ndarray]]
) -> Iterator[tuple[str, np.ndarray | None]]:
    pictures = np.stack([picture for _, picture in alike])
    latents = finite_latents(encoder, pictures)
    if any(latent is None for latent in latents):
        grey = np.full_like(pictures[:1], 128)
        if finite_latents(encoder, grey) == [None]:
            raise UserError(not_finite(encoder))
    yield from zip([name for name, _ in alike], latents, strict=True)


def finite_latents(encoder: PixelEncoder | MomentEncoder, pictures: np.ndarray) -> list[np.ndarray | None]:
    """Of each image its latents, or None where they are not finite, also as the float16 that is stored."""
    try:
        with np.errstate(over="ignore"):
            latents = encoder.encode(pictures)
    except NotFinite:  # Of one image at least.
        return [None] if len(pictures) == 1 else [finite_latents(encoder, picture[None])[0] for picture in pictures]
    return [latent if np.isfinite(latent).all() else None for latent in latents]


def not_finite(encoder: PixelEncoder | MomentEncoder) -> str:
    """What to do about an autoencoder whose latents are not finite."""
    network = encoder.codec.network
    name, precision = network.config.get("_name_or_path") or "given", str(network.dtype).removeprefix("torch.")
    cure = (
        "its weights are damaged or were saved in a precision that they do not fit into: get its float32 weights, or "
        "name another autoencoder"
        if network.dtype == torch.float32
        else "compute in float32, as force_upcast in its config.json asks for"
    )
    return (
        f"the autoencoder {name} gives latents that are not finite (NaN or infinity) in {precision}, so nothing was "
        f"stored: {cure}"
    )

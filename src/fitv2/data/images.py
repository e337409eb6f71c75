"""Images for a model: files decoded, and fitted to a token budget (paper, Algorithm 1).

Sizes are (height, width) in pixels. `patch` is the number of pixels that a token's side covers: the model's patch size
times the autoencoder's downsampling factor.

Sides are whole patches, so a resized image is stretched a little, as the authors' are. Where that would be by more than
MAX_STRETCH, it is cropped to the new aspect instead. Data sets leave out images that would have to be enlarged to one
patch (`why_unfit`).
"""

from __future__ import annotations

from math import isqrt
from typing import Literal

import numpy as np
from PIL import Image

from ..errors import UserError
from .decode import MAX_PIXELS, decode
from .formats import UnreadableImage

__all__ = ["MAX_PIXELS", "MAX_STRETCH", "Preprocessing", "UnreadableImage", "Variant", "centre_crop"]
__all__ += [
    "cropped_share",
    "decode",
    "fit_size",
    "prepare",
    "resize",
    "target_size",
    "to_array",
    "variants",
    "why_unfit",
]

Variant = Literal["resize", "crop"]
Preprocessing = Literal["resize", "crop", "mixed"]
# By how much one axis may be scaled more than the other.
MAX_STRETCH = 0.05


def variants(height: int, width: int, max_tokens: int, patch: int, preprocessing: Preprocessing) -> tuple[Variant, ...]:
    """The versions of a picture that training draws from, each with the same probability (Algorithm 1).

    "mixed": both where each side exceeds the square of the budget, else the resized one. "crop": always the square
    crop, for models of a fixed grid; smaller pictures are then enlarged. Raises ValueError for another name.
    """
    if preprocessing == "mixed":
        return ("resize", "crop") if min(height, width) > isqrt(max_tokens) * patch else ("resize",)
    if preprocessing not in ("resize", "crop"):
        raise UserError(f'preprocessing must be "resize", "crop" or "mixed", not {preprocessing!r}')
    return (preprocessing,)


def why_unfit(height: int, width: int, max_tokens: int, patch: int, preprocessing: Preprocessing) -> str | None:
    """Why an image of height x width can be no training example; None where it can."""
    short, long = sorted((height, width))
    if long < patch:
        return f"too small: {height}x{width} pixels, and a token covers {patch}x{patch}"
    if short < patch:
        return f"too narrow: {height}x{width} pixels, and a token covers {patch}x{patch}"
    if long > max_tokens * short and preprocessing != "crop":
        return f"too narrow: {height}x{width} pixels, and max_tokens={max_tokens} allows 1:{max_tokens} at most"
    return None


def fit_size(height: int, width: int, max_tokens: int, patch: int, scale: float = 1.0) -> tuple[int, int]:
    """The size to which an image of height x width is resized: multiples of `patch`, at most `max_tokens` tokens.

    An image over the budget is scaled to it; a smaller one keeps its size; then `scale` in (0, 1] applies to both
    sides; each side is floored to a multiple, and is at least one patch. What `why_unfit` refuses would be enlarged, or
    cut off at the budget. Raises UserError for sizes and budgets below 1.
    """
    if min(height, width, max_tokens, patch) < 1:
        raise UserError(f"cannot fit {height}x{width} pixels to {max_tokens} tokens of {patch}x{patch} pixels")
    if height * width > max_tokens * patch**2:
        # sqrt(N p^2 / (h w)) * h / p = sqrt(N h / w): floors of whole numbers, so no rounding error can add a token.
        rows = isqrt(int(scale**2 * max_tokens * height / width))
        columns = isqrt(int(scale**2 * max_tokens * width / height))
    else:
        rows, columns = int(scale * height / patch), int(scale * width / patch)
    if min(rows, columns) < 1:
        short = min(height, width)
        rows, columns = min(max_tokens, height // short), min(max_tokens, width // short)
    return rows * patch, columns * patch


def target_size(
    height: int, width: int, max_tokens: int, patch: int, variant: Variant, scale: float = 1.0
) -> tuple[int, int]:
    """The size that `prepare` gives an image of height x width: `fit_size`, or for "crop" the square of the budget."""
    if variant == "resize":
        return fit_size(height, width, max_tokens, patch, scale)
    side = max(1, isqrt(int(scale**2 * max_tokens))) * patch
    return side, side


def prepare(image: Image.Image, max_tokens: int, patch: int, variant: Variant, scale: float = 1.0) -> Image.Image:
    """The image fitted to the budget by one of its `variants`; `scale` in (0, 1] shrinks both sides further."""
    size = target_size(image.height, image.width, max_tokens, patch, variant, scale)
    return resize(image, size) if variant == "resize" else centre_crop(image, size[0])


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """To size (height, width), bicubic, antialiased; cut to its aspect around the centre beyond MAX_STRETCH."""
    height, width = _kept(image.height, image.width, size)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    return image.resize(size[::-1], Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))


def cropped_share(height: int, width: int, size: tuple[int, int]) -> float:
    """The fraction of an image of height x width that `resize` cuts off."""
    kept_height, kept_width = _kept(height, width, size)
    return 1 - kept_height * kept_width / (height * width)


def _kept(height: int, width: int, size: tuple[int, int]) -> tuple[float, float]:
    """Height and width of what `resize` keeps."""
    down, across = size[0] / height, size[1] / width
    if max(down, across) <= (1 + MAX_STRETCH) * min(down, across):
        return height, width
    scale = max(down, across)
    return min(height, size[0] / scale), min(width, size[1] / scale)


def centre_crop(image: Image.Image, side: int) -> Image.Image:
    """The centre square, side x side pixels, as ADM cuts it: the short side halved by box means while it is at least
    twice `side`, then resized to `side`, bicubic.
    """
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    # Resampling only the cut gives ADM's pixels without its whole scaled picture, gigabytes for an extreme aspect.
    edges = []
    for length in image.size:
        scaled = round(length * side / min(image.size))
        start, end = (scaled - side) // 2, (scaled + side) // 2
        edges.append((start * length / scaled, end * length / scaled))
    (left, right), (top, bottom) = edges
    return image.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, right, bottom))


def to_array(image: Image.Image) -> np.ndarray:
    """8-bit RGB or grey to (3 or 1, height, width) uint8, contiguous."""
    return np.ascontiguousarray(np.atleast_3d(np.asarray(image)).transpose(2, 0, 1))

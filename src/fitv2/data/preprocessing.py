"""How images are fitted to a token budget (Algorithm 1 of the paper), and how they become numbers.

Sizes are (height, width) in pixels. `patch` is the number of pixels that a token's side covers: the model's patch size
times the autoencoder's downsampling factor. The functions on sizes take numbers or arrays of them.

Sides are whole patches, so a resized image is stretched a little, as the authors' are. If the stretch would exceed
MAX_STRETCH, the image is cropped to the new aspect instead. Images that would have to be enlarged to one patch are no
training examples (`why_unfit`).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError

Variant = Literal["resize", "crop"]
Preprocessing = Literal["resize", "crop", "mixed"]
Pixels = int | np.ndarray
# Of the largest images; smaller ones have the first alone.
VARIANTS: dict[Preprocessing, tuple[Variant, ...]] = {
    "resize": ("resize",),
    "crop": ("crop",),
    "mixed": ("resize", "crop"),
}
# By how much one axis may be scaled more than the other.
MAX_STRETCH = 0.05


def can_crop(height: Pixels, width: Pixels, max_tokens: int, patch: int) -> np.ndarray:
    """Whether both sides exceed the square of the budget, so that the square crop does not enlarge the image."""
    return np.minimum(height, width) > isqrt(max_tokens) * patch


def variants(height: int, width: int, max_tokens: int, patch: int, preprocessing: Preprocessing) -> tuple[Variant, ...]:
    """Returns the versions of an image that training draws from, each with the same probability (Algorithm 1).

    "mixed": the resized image, and the square crop as well where `can_crop` allows it. "crop": always the square
    crop, for models of a fixed grid; smaller images are then enlarged.
    """
    return VARIANTS[preprocessing] if can_crop(height, width, max_tokens, patch) else VARIANTS[preprocessing][:1]


def why_unfit(height: int, width: int, max_tokens: int, patch: int, preprocessing: Preprocessing) -> str | None:
    """Returns why an image of height x width cannot be a training example; None if it can."""
    short, long = sorted((height, width))
    if short < patch:
        kind = "too small" if long < patch else "too narrow"
        return f"{kind}: {height}x{width} pixels, and a token covers {patch}x{patch}"
    if long > max_tokens * short and preprocessing != "crop":
        return f"too narrow: {height}x{width} pixels, and max_tokens={max_tokens} allows 1:{max_tokens} at most"
    return None


def fit_size(
    height: Pixels, width: Pixels, max_tokens: int, patch: int, scale: float | np.ndarray = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the size to which images are resized: multiples of `patch`, of at most `max_tokens` tokens.

    An image over the budget is scaled to it; then `scale` in (0, 1] applies to both sides; each side is floored to a
    multiple, and is at least one patch. Images that `why_unfit` refuses would be enlarged, or cut off at the budget.
    """
    # sqrt(N p^2 / (h w)) * h / p = sqrt(N h / w): floors of whole numbers, so no rounding error can add a token.
    over = np.multiply(height, width) > max_tokens * patch**2
    rows = np.where(over, _root(scale**2 * max_tokens * height / width), scale * height / patch).astype(np.int64)
    columns = np.where(over, _root(scale**2 * max_tokens * width / height), scale * width / patch).astype(np.int64)
    short, tiny = np.minimum(height, width), np.minimum(rows, columns) < 1
    rows = np.where(tiny, np.minimum(max_tokens, np.floor_divide(height, short)), rows)
    columns = np.where(tiny, np.minimum(max_tokens, np.floor_divide(width, short)), columns)
    return rows * patch, columns * patch


def target_size(
    height: Pixels, width: Pixels, max_tokens: int, patch: int, variant: Variant, scale: float | np.ndarray = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the size of a variant: `fit_size`, or for "crop" the square of the budget."""
    if variant == "resize":
        return fit_size(height, width, max_tokens, patch, scale)
    side = np.maximum(1, _root(scale**2 * max_tokens)).astype(np.int64) * patch
    return side, side


def _root(number: float | np.ndarray) -> np.ndarray:
    """The square root of the whole part, rounded down. Exact below 2**52."""
    return np.floor(np.sqrt(np.floor(number)))


def variant_sizes(
    sizes: np.ndarray, max_tokens: int, patch: int, preprocessing: Preprocessing, scale: float | np.ndarray = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sizes of all variants of N images, in the order of `variants`, and how many each image has.

    sizes: (N, 2) pixels. scale: in (0, 1], one or (N,). Returns (N, V, 2) int64 pixels, with V = 2 for "mixed", else 1;
    and (N,) int64 in 1 to V.
    """
    height, width = sizes.T
    names = VARIANTS[preprocessing]
    every = [np.broadcast_arrays(*target_size(height, width, max_tokens, patch, v, scale), height)[:2] for v in names]
    possible = np.where(can_crop(height, width, max_tokens, patch), len(names), 1)
    return np.stack([np.stack(size, -1) for size in every], 1), possible


def all_variants(
    sizes: np.ndarray, max_tokens: int, patch: int, preprocessing: Preprocessing, further: Sequence[int] = ()
) -> tuple[np.ndarray, np.ndarray, tuple[Variant, ...]]:
    """Returns `variant_sizes`, or with further, smaller budgets the size of each image under each of them, and names.

    Raises UserError for further budgets with another preprocessing than "resize", or above `max_tokens`.
    """
    if not further:
        return *variant_sizes(sizes, max_tokens, patch, preprocessing), VARIANTS[preprocessing]
    if preprocessing != "resize":
        raise UserError(f"data.further_tokens needs data.preprocessing=resize, and it is {preprocessing}")
    if not 0 < min(further) <= max(further) < max_tokens:
        raise UserError(f"data.further_tokens={list(further)} must be below data.max_tokens={max_tokens}")
    budgets = (max_tokens, *further)
    under = [variant_sizes(sizes, budget, patch, "resize")[0] for budget in budgets]
    names: tuple[Variant, ...] = ("resize",) * len(budgets)
    return np.concatenate(under, 1), np.full(len(sizes), len(budgets)), names


def prepare(image: Image.Image, max_tokens: int, patch: int, variant: Variant) -> Image.Image:
    """Returns the image fitted to the budget by one of its `variants`."""
    height, width = target_size(image.height, image.width, max_tokens, patch, variant)
    return fitted(image, (int(height), int(width)), variant)


def fitted(image: Image.Image, size: tuple[int, int], variant: Variant) -> Image.Image:
    """Returns the image at the size (height, width) of a variant."""
    return resize(image, size) if variant == "resize" else centre_crop(image, size[0])


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resizes to (height, width), bicubic with antialiasing, after a centre crop to that aspect beyond MAX_STRETCH."""
    height, width = _kept(image.height, image.width, size)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    return image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))


def cropped_share(height: int, width: int, size: tuple[int, int]) -> float:
    """Returns the fraction of an image of height x width that `resize` cuts off."""
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
    """Returns the centre square, side x side pixels, as ADM cuts it.

    The short side is halved by box means while it is at least twice `side`, then resized to `side`, bicubic.
    """
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    # Resampling only the cut gives ADM's pixels without its whole scaled image, gigabytes for an extreme aspect.
    edges = []
    for length in image.size:
        scaled = round(length * side / min(image.size))
        start, end = (scaled - side) // 2, (scaled + side) // 2
        edges.append((start * length / scaled, end * length / scaled))
    (left, right), (top, bottom) = edges
    return image.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, right, bottom))


def to_array(image: Image.Image) -> np.ndarray:
    """Converts an 8-bit RGB or grey image to (3 or 1, height, width) uint8, contiguous."""
    return np.ascontiguousarray(np.atleast_3d(np.asarray(image)).transpose(2, 0, 1))


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Converts (C, height, width) uint8 to float32 in [-1, 1], contiguous: black is -1, white 1."""
    # In numpy: torch would wake its thread pool for each of these small steps, which costs more than the steps.
    return torch.from_numpy(pixels.astype(np.float32, order="C") / 127.5 - 1)

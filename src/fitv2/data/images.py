"""Any picture file to pixels, and the geometry that fits a picture to a token budget (paper, Algorithm 1).

Sizes are (height, width) in pixels. `patch` is the number of pixels that a token's side covers: the model's patch size
times the autoencoder's downsampling factor. Colour profiles are not applied.
"""

from __future__ import annotations

from contextlib import nullcontext
from io import SEEK_END
from math import isqrt
from pathlib import Path
from threading import Lock
from typing import BinaryIO, Literal

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from ..errors import UserError

Variant = Literal["resize", "crop"]
Preprocessing = Literal["resize", "crop", "mixed"]

# Plain raster formats only: Pillow knows others that start a program (EPS) or are not single pictures (PDF, MPEG).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm", ".pgm", ".pbm")
)
MAX_PIXELS = 178_000_000
# Pictures beyond this are decoded one at a time: with alpha they take over ten bytes a pixel for a moment.
LARGE = 32_000_000
_ONE_LARGE = Lock()

_GREY16_MODES = ("I", "I;16", "I;16B", "I;16L")
_PLAIN_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(UserError):
    """A file that gives no picture. The message is the reason: a kind, or a kind, a colon and the detail."""


def decode(file: str | Path | BinaryIO, mode: Literal["RGB", "L"] = "RGB", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The first picture in a file, by path or open, upright, alpha on white, 8 bits a channel, as Pillow mode `mode`.

    max_pixels is compared with the header, before pixels are decoded; Pillow's own limit (178 956 970 by default) holds
    as well. Raises UnreadableImage: not a picture, truncated, damaged, too large, or of pixels without a defined white.
    """
    # Another library may have switched this on for the whole process; half a picture must not pass for a whole one.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise Image.DecompressionBombError(f"{image.height}x{image.width} pixels, limit {max_pixels}")
            with _ONE_LARGE if image.width * image.height > LARGE else nullcontext():
                image.load()
                return _to_mode(_upright(image), mode)
    except UnreadableImage:
        raise
    except Exception as error:  # On damaged files Pillow raises nearly any type, from KeyError to MemoryError.
        raise UnreadableImage(_reason(file, error)) from error


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


def fit_size(height: int, width: int, max_tokens: int, patch: int, scale: float = 1.0) -> tuple[int, int]:
    """The size to which a picture of height x width is resized: multiples of `patch`, at most `max_tokens` tokens.

    A picture over the budget is scaled to it, aspect kept; a smaller one keeps its size; then `scale` in (0, 1] applies
    to both sides; each side is floored to a multiple. Only when a side falls under one patch is the picture scaled up
    to it, and the long side cut off at the budget: beyond 1:max_tokens the aspect cannot be kept.
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
    """The size that `prepare` gives a picture of height x width: `fit_size`, or for "crop" the square of the budget."""
    if variant == "resize":
        return fit_size(height, width, max_tokens, patch, scale)
    side = max(1, isqrt(int(scale**2 * max_tokens))) * patch
    return side, side


def prepare(image: Image.Image, max_tokens: int, patch: int, variant: Variant, scale: float = 1.0) -> Image.Image:
    """The picture fitted to the budget by one of its `variants`; `scale` in (0, 1] shrinks both sides further."""
    size = target_size(image.height, image.width, max_tokens, patch, variant, scale)
    return resize(image, size) if variant == "resize" else centre_crop(image, size[0])


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """To size (height, width), bicubic, antialiased."""
    return image.resize(size[::-1], Image.Resampling.BICUBIC)


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


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says. Not ImageOps.exif_transpose: it writes the EXIF anew, which often fails."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Malformed EXIF is common and says nothing about the pixels.
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in _GREY16_MODES:
        return _grey8(image).convert(mode)
    if image.mode not in _PLAIN_MODES:
        raise UnreadableImage(f"no defined white: pixels of type {image.mode}")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(mode)


def _grey8(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits, 65535 to 255; Pillow's own conversion would cut off everything above 255."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableImage("no defined white: grey values beyond 0 to 65535")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _reason(file: str | Path | BinaryIO, error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"too large: {error}"
    if isinstance(error, UnidentifiedImageError):
        return "empty file" if _size(file) == 0 else "not a picture"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read: {error.strerror}"
    return f"truncated or damaged: {error}"


def _size(file: str | Path | BinaryIO) -> int:
    """Bytes of a file, by path or open."""
    return Path(file).stat().st_size if isinstance(file, str | Path) else file.seek(0, SEEK_END)

"""Converts samples of any depth and meaning to 8 bits (black 0, white 255): an image and its alpha, if any."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile

from .formats import UnreadableImage, is_raw_camera_file

_GREY16 = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_OPAQUE = ("1", "L", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "P")
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
# Tags of TIFF.
_BITS, _PHOTOMETRIC, _PLANES, _FORMAT, _LOWEST, _HIGHEST = 258, 262, 284, 339, 340, 341
_COMPRESSION, _SUBSAMPLING, _INKS, _DOT_RANGE, _JPEGS = 259, 530, 332, 336, (6, 7)
_COLOURS = 320
_UNSIGNED, _FLOAT = 1, 3


class Scale(NamedTuple):
    """The values of black and white in the file's own units; in a negative, black is above white. reached: the highest
    value must be at least this, or `white` is doubtful.
    """

    black: float
    white: float
    reached: float = -inf


def no_white(why: str) -> UnreadableImage:
    return UnreadableImage(f"no defined white: {why}")


def scale_of(image: Image.Image) -> Scale | None:
    """Returns black and white of an image not yet decoded; None if Pillow decodes it to correctly scaled 8 bits.

    Raises UnreadableImage if the file does not say which value is white.
    """
    if image.format == "TIFF":
        return _tiff_scale(image)
    if image.mode == "F":
        raise no_white("floating point")
    if image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        raise no_white("CMYK without Adobe's marker, which says that ink is stored as 255 minus ink")
    return Scale(0, 65535) if image.mode in _GREY16 else None


def _tiff_scale(image: Image.Image) -> Scale | None:
    tags = getattr(image, "tag_v2", {})
    if is_raw_camera_file(image):
        raise UnreadableImage("raw camera file, develop it to JPEG, PNG or TIFF")
    jpeg = tags.get(_COMPRESSION) in _JPEGS
    photometric = tags.get(_PHOTOMETRIC)
    if photometric is None and not jpeg:
        raise no_white("no photometric interpretation")
    bits, kind = max(tags.get(_BITS, (1,))), max(tags.get(_FORMAT, (_UNSIGNED,)))
    if tags.get(_PLANES, 1) == 2 and bits > 8 and tags.get(_COMPRESSION, 1) == 1 and image.mode not in _GREY16:
        raise UnreadableImage(f"not supported: {bits} bits in uncompressed planes")
    if photometric == 6 and not jpeg and tuple(tags.get(_SUBSAMPLING, (2, 2))) != (1, 1):
        raise UnreadableImage("not supported: YCbCr with subsampled colours outside JPEG")
    if photometric == 5 and (tags.get(_INKS, 1) != 1 or tuple(tags.get(_DOT_RANGE, (0, 255)))[:2] != (0, 255)):
        raise UnreadableImage("not supported: other inks than CMYK from 0 to 255")
    if photometric == 3 and max(tags.get(_COLOURS, (256,))) < 256:
        raise no_white("a palette of 8 bits where 16 belong")
    scale = _range(tags, bits, kind)
    if image.mode in _GREY16:
        return Scale(scale.white, scale.black) if photometric == 0 else scale
    if scale != (0, 2**bits - 1, -inf):
        raise no_white(f"{bits} bits from {scale.black:g} to {scale.white:g}")
    return None


def _range(tags: Mapping[int, Any], bits: int, kind: int) -> Scale:
    """The lowest and highest value that the file names, or else the full range of unsigned numbers up to 16 bits.

    Floats and signed numbers have no white of their own. Pillow stores 16-bit grey as 32-bit whole numbers; they must
    reach the upper half of 16 bits, because other programs store 12 bits in the same way.
    """
    own = Scale(0, 2**bits - 1) if kind == _UNSIGNED and bits <= 16 else None
    if own is None and kind != _FLOAT and bits == 32:
        own = Scale(0, 65535, reached=32768)
    low, high = (_single(tags.get(tag)) for tag in (_LOWEST, _HIGHEST))
    if low is None and high is None and own is not None:
        return own
    scale = Scale(low or 0, high if high is not None else 2**bits - 1)
    if (high is None and own is None) or not scale.white > scale.black:
        what = {1: "unsigned numbers", 2: "signed numbers", 3: "floating point"}.get(kind, "numbers of no format")
        raise no_white(f"{what} of {bits} bits")
    return scale


def _single(value: Any) -> float | None:
    """The value of a tag that is one number, or the same number for every sample."""
    values = set(value) if isinstance(value, tuple) else {value}
    return float(values.pop()) if len(values) == 1 and None not in values else None


def transparent_value(image: ImageFile.ImageFile) -> Any:
    """Returns the transparent value of an image not yet decoded, in the units of the decoded pixels."""
    value = image.info.get("transparency")
    if image.format != "PNG" or value is None or not image.tile:
        return value
    stored = image.tile[0].args
    if stored == "RGB;16B":
        raise UnreadableImage("not supported: a transparent colour of 16 bits")
    # Pillow scales grey of 2 and 4 bits to 0 to 255, but not the transparent value.
    return value * {"L;2": 85, "L;4": 17}.get(str(stored), 1) if isinstance(value, int) else value


def split_alpha(image: Image.Image, scale: Scale | None, transparent: Any) -> tuple[Image.Image, Image.Image | None]:
    """Splits decoded pixels into colours (L, RGB, CMYK, YCbCr or LAB) and alpha (mode L), or None without alpha."""
    if image.mode in _GREY16:
        values = np.asarray(image)
        alpha = (
            None if transparent is None else Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
        )
        return _grey8(values, scale or Scale(0, 65535)), alpha
    if image.mode not in (*_OPAQUE, *_ALPHA):
        raise no_white(f"pixels of type {image.mode}")
    if transparent is not None:
        image.info["transparency"] = transparent
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        grey = image.mode in ("1", "L", "LA")
        return colours.convert("RGB").getchannel(0) if grey else colours.convert("RGB"), colours.getchannel("A")
    if image.mode == "1":
        return image.convert("L"), None
    return image.convert("RGB") if image.mode in ("P", "RGBX") else image, None


def _grey8(values: np.ndarray, scale: Scale) -> Image.Image:
    """Converts grey of any depth to 8 bits, rounded; Pillow's own conversion would clip everything above 255."""
    black, white, reached = scale
    low, high = sorted((black, white))
    # Written so that NaN fails.
    if not (values.min() >= low and values.max() <= high):
        raise no_white(f"grey values beyond {low:g} to {high:g}")
    if values.max() < reached:
        raise no_white(f"whole numbers of 32 bits, up to {values.max()}")
    # Unsigned values use a table, with a sixteenth of the memory of floating point.
    if values.dtype.kind == "u":
        table = (np.arange(2 ** (8 * values.dtype.itemsize)) - black) * (255 / (white - black))
        return Image.fromarray(np.clip(np.floor(table + 0.5), 0, 255).astype(np.uint8)[values])
    scaled = (values.astype(np.float64) - black) * (255 / (white - black))
    return Image.fromarray(np.floor(scaled + 0.5).astype(np.uint8))

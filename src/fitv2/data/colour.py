"""Colours to sRGB, by the ICC profile of a file, or by the primaries and the transfer curve that the file names.

Files without a profile are taken as sRGB, as on the web. A profile that cannot be used is ignored, with a warning.
"""

from __future__ import annotations

import io
import logging
import struct
from functools import lru_cache
from typing import Any, cast

import numpy as np
from PIL import Image, ImageCms

from .containers import boxes_within, png_chunks
from .formats import UnreadableImage

logger = logging.getLogger(__name__)

_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "LAB": "LAB", "Lab ": "LAB"}
# A profile counts as sRGB, of which many versions circulate, up to this difference in values of 0 to 255.
_SAME = 2
_PROFILES = 64
# x and y of white, red, green and blue.
Chromaticities = tuple[float, float, float, float, float, float, float, float]
SRGB: Chromaticities = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
# H.273: the colour primaries and the transfer curves as exponents that PNG, AVIF and HEIF name by number.
_PRIMARIES: dict[int, Chromaticities] = {
    1: SRGB,
    2: SRGB,
    5: (0.3127, 0.329, 0.64, 0.33, 0.29, 0.6, 0.15, 0.06),
    6: (0.3127, 0.329, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    7: (0.3127, 0.329, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    9: (0.3127, 0.329, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
    12: (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
}
# None: the curve of sRGB. Video curves (1, 6, 14, 15) assume the screen's curve, in practice that of sRGB.
_CURVES: dict[int, float | None] = {1: None, 2: None, 4: 2.2, 5: 2.8, 6: None, 8: 1.0, 13: None, 14: None, 15: None}
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D50 = np.array([0.9642, 1.0, 0.8249])

# Enumerated colour spaces of JPEG 2000: bilevel, CMYK, sRGB, grey, sYCC.
_JPEG2000 = (0, 12, 15, 16, 17, 18)


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Converts mode L, RGB, CMYK, YCbCr or LAB to RGB or grey (mode L) in sRGB, by the ICC profile of the file."""
    if image.mode == "LAB":
        return _transformed(image, _lab())
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    if profile:
        space = _space(profile)
        if image.mode == "L" and space == "RGB":
            image = image.convert("RGB")
        if image.mode == space:
            transform = _transform(profile, space)
            return image if transform is None else _transformed(image, transform)
    return image.convert("RGB") if image.mode == "CMYK" else image


def _transformed(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    return cast(Image.Image, ImageCms.applyTransform(image, transform))  # None only in place.


@lru_cache(maxsize=_PROFILES)
def _space(profile: bytes) -> str | None:
    """The pixel mode that a profile is for; None if it is broken or of another kind."""
    try:
        opened: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return _SPACES.get(opened.profile.xcolor_space)
    except Exception as error:  # OSError, TypeError, ValueError and others.
        logger.warning("a colour profile of %d bytes cannot be read and is ignored: %s", len(profile), error)
        return None


@lru_cache(maxsize=_PROFILES)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from a profile to sRGB; None if it would change nothing visible or cannot be built."""
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            _srgb(),
            mode,
            "RGB",
            ImageCms.Intent.PERCEPTUAL,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except Exception as error:
        logger.warning("a colour profile of %d bytes cannot be used and is ignored: %s", len(profile), error)
        return None
    if mode == "CMYK":
        return transform
    levels = np.linspace(0, 255, 9 if mode == "RGB" else 256).round().astype(np.uint8)
    probe = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(27, 27, 3) if mode == "RGB" else levels[None]
    before = Image.fromarray(probe)
    after = np.asarray(_transformed(before, transform)).astype(int)
    return None if abs(after - np.asarray(before.convert("RGB"))).max() <= _SAME else transform


@lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@lru_cache(maxsize=1)
def _lab() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), _srgb(), "LAB", "RGB")


def profile_of(image: Image.Image, content: bytes) -> bytes | None:
    """Returns the ICC profile of a file; None for sRGB and for files that name none.

    Raises UnreadableImage for high dynamic range, whose white is not fixed, and for unknown colour spaces.
    """
    embedded = image.info.get("icc_profile")
    if image.format == "PNG":
        code = next((bytes(chunk.data) for chunk in png_chunks(content) if chunk.kind == b"cICP"), b"")
        if len(code) == 4:
            return _of_code(code[0], code[1])
        return embedded or _of_png(image.info)
    if image.format == "HEIF" and not embedded and (named := image.info.get("nclx_profile")):
        return _of_code(int(named["color_primaries"]), int(named["transfer_characteristics"]))
    if image.format == "AVIF" and not embedded:
        found = boxes_within(content, b"meta", b"iprp", b"ipco", b"colr")
        codes = [struct.unpack(">HH", data[4:8]) for data in found if data.startswith(b"nclx")]
        return _of_code(*codes[0]) if codes else None
    if image.format == "JPEG2000":
        return _of_jpeg2000(content)
    if image.format == "BMP":
        return _of_bmp(content)
    return embedded


def _of_jpeg2000(content: bytes) -> bytes | None:
    for data in boxes_within(content, b"jp2h", b"colr"):
        if data[0] == 2:
            return data[3:]
        if data[0] == 1 and (space := int.from_bytes(data[3:7], "big")) not in _JPEG2000:
            raise UnreadableImage(f"unknown colours: number {space} of JPEG 2000")
    return None


def _of_bmp(content: bytes) -> bytes | None:
    """The profile in a BMP; only version 5 of the header can hold one."""
    header = content[14:138]
    if len(header) < 124 or int.from_bytes(header[:4], "little") != 124 or header[56:60] != b"DEBM":
        return None
    start, length = struct.unpack("<II", header[112:120])
    return content[14 + start : 14 + start + length]


def _of_code(primaries: int, curve: int) -> bytes | None:
    """The ICC profile for two numbers of H.273; None for sRGB. Raises UnreadableImage for HDR, whose white varies."""
    if curve in (16, 18):
        raise UnreadableImage(f"no defined white: high dynamic range ({'PQ' if curve == 16 else 'HLG'})")
    if primaries not in _PRIMARIES or curve not in _CURVES:
        raise UnreadableImage(f"unknown colours: primaries {primaries}, transfer {curve}")
    chosen, exponent = _PRIMARIES[primaries], _CURVES[curve]
    return None if (chosen, exponent) == (SRGB, None) else make_profile(chosen, exponent)


def _of_png(info: dict) -> bytes | None:
    """The ICC profile for a PNG's gAMA and cHRM chunks; None where they say nothing, or sRGB."""
    gamma, primaries = info.get("gamma"), info.get("chromaticity")
    if "srgb" in info or not (gamma or primaries):
        return None
    if primaries is None or np.abs(np.subtract(primaries, SRGB)).max() < 0.005:
        primaries = SRGB
    # Files mean sRGB by the exponent nearest to its curve.
    curve = None if not gamma or (primaries == SRGB and abs(gamma - 1 / 2.2) < 0.01) else 1 / gamma
    return None if (primaries, curve) == (SRGB, None) else make_profile(tuple(primaries), curve)


@lru_cache(maxsize=_PROFILES)
def make_profile(primaries: Chromaticities, exponent: float | None) -> bytes | None:
    """Builds a version 4 ICC profile of primaries and an exponent (None: sRGB's curve); None if that is impossible."""
    try:
        white, *colours = np.array([(x / y, 1.0, (1 - x - y) / y) for x, y in zip(*[iter(primaries)] * 2, strict=True)])
        columns = np.stack(colours, 1)
        columns = columns * np.linalg.solve(columns, white)
    except (ZeroDivisionError, np.linalg.LinAlgError):
        return None
    adapted = np.linalg.inv(_BRADFORD) @ np.diag(_BRADFORD @ _D50 / (_BRADFORD @ white)) @ _BRADFORD @ columns
    fixed = lambda *values: struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))  # noqa: E731
    curve = (3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045) if exponent is None else (0, exponent)
    trc = b"para\0\0\0\0" + struct.pack(">HH", curve[0], 0) + fixed(*curve[1:])
    text = "made".encode("utf-16-be")
    label = b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text
    tags = {b"desc": label, b"cprt": label, b"wtpt": b"XYZ \0\0\0\0" + fixed(*_D50)}
    tags |= {name + b"XYZ": b"XYZ \0\0\0\0" + fixed(*adapted[:, i]) for i, name in enumerate((b"r", b"g", b"b"))}
    tags |= {name + b"TRC": trc for name in (b"r", b"g", b"b")}
    table, data = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(data), len(value))
        data += value + b"\0" * (-len(value) % 4)
    size = struct.pack(">I", 132 + 12 * len(tags) + len(data))
    header = size + bytes(4) + b"\4\x30\0\0mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28) + fixed(*_D50)
    return header.ljust(128, b"\0") + table + data

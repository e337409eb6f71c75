"""Which files are images: the formats and kinds that are decoded right, and advice for all others."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from ..errors import UserError

# Plain raster formats only: Pillow knows others that start a program (EPS) or are not single images (PDF, MPEG).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
_EXTENSIONS = ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .gif .bmp .tif .tiff .avif .ppm .pgm .pbm .pnm"
EXTENSIONS = frozenset(f"{_EXTENSIONS} .heic .heif .hif".split())
RAW = "raw camera file, develop it to JPEG, PNG or TIFF"
_ADVICE = {
    RAW: ".cr2 .cr3 .crw .nef .nrw .arw .sr2 .dng .orf .rw2 .raf .pef .srw .x3f .3fr .iiq",
    "vector drawing, render it to PNG": ".svg .svgz .eps .ai .wmf .emf",
    "archive, unpack it": ".zip .rar .7z .gz .tgz .bz2 .xz .zst",
    "document of layers or pages, export it to PNG": ".psd .psb .xcf .kra .pdf",
    "video, extract its frames": ".mp4 .mov .m4v .avi .mkv .webm .mpg .mpeg .3gp",
    "rare image format, convert it to PNG": ".jp2 .j2k .j2c .jpx .jpf .jxl .jxr .wdp .tga .qoi .pfm .pam .ico .cur "
    ".icns .pcx .sgi .dds .exr .hdr .fits .ras .xbm .xpm",
}
ADVICE = {extension: advice for advice, extensions in _ADVICE.items() for extension in extensions.split()}
# What ISO media files begin with, if they are HEIC; mif1 and msf1 may also be AVIF.
_HEIF = re.compile(rb".{4}ftyp(hei[cxms]|hev[cxms]|mi[fa]1|msf1)", re.DOTALL)
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "I", "I;16", "I;16B", "I;16L", "I;16N")
# By H.273: the primaries and curves of sRGB. Video curves assume the screen's curve, in practice that of sRGB.
_SRGB_PRIMARIES, _SRGB_CURVES = (1, 2), (1, 2, 6, 13, 14, 15)
_SRGB_CHROMATICITIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)


class UnreadableImage(UserError):
    """Raised for a file that cannot be decoded. The message is "KIND" or "KIND: DETAIL"; reports group by kind."""


def advice(extensions: Mapping[str, int]) -> list[str]:
    """Returns what to do about files of other formats, a sentence per kind; extensions: how many files have each."""
    kinds = Counter()
    for extension, count in extensions.items():
        if extension in ADVICE:
            kinds[ADVICE[extension]] += count
    return [f"{count} of them: {kind}" for kind, count in sorted(kinds.items())]


def open_image(content: bytes) -> ImageFile.ImageFile:
    """Opens the first image of a file, by content and not by name, without decoding its pixels.

    Raises UnreadableImage for kinds of images that are not read, and Pillow's UnidentifiedImageError for other files.
    """
    if _HEIF.match(content) and not re.search(b"avi[fs]", content[8:64]):
        try:
            from pillow_heif import HeifImageFile
        except ImportError:
            raise UnreadableImage("HEIC needs pip install 'fitv2[heif]'") from None
        image = HeifImageFile(io.BytesIO(content))
    else:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    if why := _why_not_supported(image, content):
        raise UnreadableImage(f"not supported: {why}, convert it to a PNG of 8 bits in sRGB")
    return image


def _why_not_supported(image: ImageFile.ImageFile, content: bytes) -> str | None:
    """Returns why the pixels cannot be decoded right: Pillow would get them wrong, or the file does not define them."""
    kind, stored = image.format, str(image.tile[0].args) if image.tile else ""
    if image.mode not in _MODES:
        return f"pixels of type {image.mode}"
    if kind == "TIFF" and not _is_plain_tiff(getattr(image, "tag_v2", {})):
        return "a TIFF of this kind"
    if kind in ("JPEG", "MPO") and image.mode == "CMYK" and "adobe" not in image.info:
        return "CMYK without Adobe's marker, which says that ink is stored as 255 minus ink"
    if kind == "GIF" and image.tile[0].extents != (0, 0, *image.size):
        return "an animation whose first frame leaves a border open"
    if kind == "PNG" and "transparency" in image.info and "16" in stored:
        return "a transparent value of 16 bits"
    if kind == "BMP" and content[70:74] in (b"DEBM", b"KNIL"):  # Pillow does not read this profile.
        return "a colour profile in a BMP"
    return None if _are_colours_known(image, content) else "colours that neither a profile nor sRGB describes"


def _is_plain_tiff(tags: Mapping[int, Any]) -> bool:
    """Whether a TIFF holds unsigned numbers from black or white at 0 to the other at the highest, not in planes.

    Compressions are those that `damage` can check. Raises UnreadableImage for a camera's raw file, whose first image is
    only a thumbnail.
    """
    if 50706 in tags or tags.get(254, 0) & 1:
        raise UnreadableImage(RAW)
    bits, photometric, compression = max(tags.get(258, (1,))), tags.get(262, -1), tags.get(259, 1)
    meanings = {
        0: bits <= 8,
        1: True,
        2: True,
        3: max(tags.get(320, (0,))) > 255,  # Some palettes hold 8 bits where 16 belong.
        5: bits == 8 and tags.get(332, 1) == 1 and tuple(tags.get(336, (0, 255)))[:2] == (0, 255),
    }
    return (
        meanings.get(photometric, False)
        and bits in (1, 2, 4, 8, 16)
        and compression in (1, 5, 8, 32773, 32946)
        and tags.get(284, 1) == 1
        and set(tags.get(339, (1,))) == {1}
        and set(np.ravel(tags.get(340, 0))) == {0}
        and set(np.ravel(tags.get(341, 2**bits - 1))) == {2**bits - 1}
    )


def _are_colours_known(image: Image.Image, content: bytes) -> bool:
    """Whether colours are sRGB, or the file has an ICC profile and not only numbers that name other primaries."""
    code, info = None, image.info
    if image.format == "PNG":
        code = re.search(rb"cICP(.)(.)", content[: content.find(b"IDAT")], re.DOTALL)
    elif image.format in ("AVIF", "HEIF") and "icc_profile" not in info:
        code = re.search(rb"colrnclx.(.).(.)", content, re.DOTALL)
    if code is not None:
        return code[1][0] in _SRGB_PRIMARIES and code[2][0] in _SRGB_CURVES
    if image.format != "PNG" or "icc_profile" in info or "srgb" in info:
        return True
    gamma, primaries = info.get("gamma") or 1 / 2.2, info.get("chromaticity") or _SRGB_CHROMATICITIES
    return abs(gamma - 1 / 2.2) < 0.01 and np.abs(np.subtract(primaries, _SRGB_CHROMATICITIES)).max() < 0.005

"""Which files are images: the formats that are read, by extension and content, and advice for all others."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from contextlib import suppress

from PIL import Image, ImageFile

from ..errors import UserError

# Plain raster formats only: Pillow knows others that start a program (EPS) or are not single images (PDF, MPEG).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "JPEG2000", "QOI")
_EXTENSIONS = """.jpg .jpeg .jpe .jfif .mpo .png .apng .webp .gif .bmp .tif .tiff .avif .ppm .pgm .pbm .pnm .pfm
.jp2 .j2k .j2c .jpx .jpf .tga .qoi .heic .heif .hif"""
EXTENSIONS = frozenset(_EXTENSIONS.split())
NO_HEIF = "HEIC needs pip install 'fitv2[heif]'"
RAW = "raw camera file, develop it to JPEG, PNG or TIFF"
VECTOR, ARCHIVE = "vector drawing, render it to PNG", "archive, unpack it"
LAYERED, VIDEO = "document of layers or pages, export it to PNG", "video, extract its frames"
OTHER = "rare image format, convert it to PNG"
_ADVICE = {
    RAW: ".cr2 .cr3 .crw .nef .nrw .arw .sr2 .dng .orf .rw2 .raf .pef .srw .x3f .3fr .iiq",
    VECTOR: ".svg .svgz .eps .ai .wmf .emf",
    ARCHIVE: ".zip .rar .7z .gz .tgz .bz2 .xz .zst",
    LAYERED: ".psd .psb .xcf .kra .pdf",
    VIDEO: ".mp4 .mov .m4v .avi .mkv .webm .mpg .mpeg .3gp",
    OTHER: ".jxl .ico .cur .pcx .sgi .dds .exr .hdr .icns .jxr .wdp .fits .pam .ras .xbm .xpm",
}
ADVICE = {extension: advice for advice, extensions in _ADVICE.items() for extension in extensions.split()}
_HEIF = rb"heic|heix|heim|heis|hevc|hevx|hevm|hevs|mif1|msf1"
_BY_CONTENT = (
    (re.compile(rb"(II\*\0|MM\0\*).{4}CR", re.DOTALL), RAW),
    (re.compile(rb".{4}ftypcrx |FUJIFILMCCD-RAW|IIRO|IIU\0|MMOR", re.DOTALL), RAW),
    (re.compile(rb"8BPS|%PDF|gimp xcf"), LAYERED),
    (re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg", re.DOTALL), VECTOR),
    (re.compile(rb"PK\x03\x04|Rar!|7z\xbc\xaf|\x1f\x8b"), ARCHIVE),
    (re.compile(rb".{4}ftyp(isom|iso\d|mp4\d|avc1|qt  |M4V |3gp)|\x1aE\xdf\xa3|RIFF.{4}AVI ", re.DOTALL), VIDEO),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL |\0\0[\x01\x02]\0[^\0]\0|DDS |\x01\xda[\0\1]|\x0a[\0-\x05]\x01"), OTHER),
)
_TGA_FOOTER = b"TRUEVISION-XFILE.\0"


class UnreadableImage(UserError):
    """Raised for a file that cannot be decoded. The message is "KIND" or "KIND: DETAIL"; reports group by kind."""


def advice(extensions: Mapping[str, int]) -> list[str]:
    """Returns what to do about files of other formats, a sentence per kind; extensions: how many files have each."""
    kinds: dict[str, int] = {}
    for extension, count in extensions.items():
        if extension in ADVICE:
            kinds[ADVICE[extension]] = kinds.get(ADVICE[extension], 0) + count
    return [f"{count} of them: {kind}" for kind, count in sorted(kinds.items())]


def ignored(extension: str) -> str:
    """Returns why a file whose extension is not that of an image is left out."""
    told = f", {ADVICE[extension]}" if extension in ADVICE else ""
    return f"ignored extension: {extension or 'without extension'}{told}"


def open_image(content: bytes) -> ImageFile.ImageFile:
    """Opens the first image of a file, by content and not by name, without decoding its pixels.

    Raises UnreadableImage for known formats that are not read, and Pillow's UnidentifiedImageError for all others.
    """
    for pattern, kind in _BY_CONTENT:
        if pattern.match(content):
            raise UnreadableImage(kind)
    if re.match(rb".{4}ftyp(" + _HEIF + rb")", content, re.DOTALL) and not _is_avif(content):
        return _open_heif(content)
    return Image.open(io.BytesIO(content), formats=(*FORMATS, "TGA") if _is_tga(content) else FORMATS)


def _is_avif(content: bytes) -> bool:
    """Whether the list of brands names AVIF: the first brand may be the general mif1."""
    length = int.from_bytes(content[:4], "big")
    return any(content[at : at + 4] in (b"avif", b"avis") for at in range(8, min(length, 256), 4))


def _open_heif(content: bytes) -> ImageFile.ImageFile:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise UnreadableImage(NO_HEIF) from None
    return HeifImageFile(io.BytesIO(content))


def _is_tga(content: bytes) -> bool:
    """TGA has no magic number at its start: its footer tells, or a plausible header with exactly its amount of data."""
    if content.endswith(_TGA_FOOTER):
        return True
    if len(content) < 18 or content[1] > 1 or content[2] not in (1, 2, 3) or content[16] not in (8, 16, 24, 32):
        return False
    width, height, colours = (int.from_bytes(content[at : at + 2], "little") for at in (12, 14, 5))
    palette = colours * ((content[7] + 7) // 8) if content[1] else 0
    return len(content) == 18 + content[0] + palette + width * height * content[16] // 8


def is_raw_camera_file(image: Image.Image) -> bool:
    """Whether a TIFF is a raw camera file, of which Pillow would return only the thumbnail that comes first."""
    tags = getattr(image, "tag_v2", {})
    with suppress(TypeError):
        return 50706 in tags or bool(tags.get(254, 0) & 1) or tags.get(262) in (32803, 34892)
    return False

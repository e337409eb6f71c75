"""Decodes image files, of every mode, depth, profile and orientation: the one place where this is done."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import BinaryIO, Literal

from PIL import ExifTags, Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from ..sample_list import is_contact_sheet
from .colour import profile_of, to_srgb
from .formats import UnreadableImage, open_image
from .samples import scale_of, split_alpha, transparent_value
from .whole import check_whole

MAX_PIXELS = 178_000_000
MAX_BYTES = 1 << 30
# Images beyond this are decoded one at a time: with alpha they take over ten bytes a pixel for a moment.
LARGE = 32_000_000
_ONE_LARGE = Lock()
# Limit for text in a PNG, such as the workflow that made it, and for its profile; Pillow's own limit is 1 MiB.
_MAX_TEXT = 256 << 20

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(file: str | Path | BinaryIO, mode: Literal["RGB", "L"] = "RGB", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes the first image in a file: upright, in sRGB, alpha on white, 8 bits a channel.

    Args:
        file: A path or an open file. Of several images, the first frame, the first page or the primary image counts.
        mode: Pillow's mode of the result.
        max_pixels: Compared with the header, before pixels are decoded. Pillow's own limit holds as well.

    Raises:
        UnreadableImage: The file is not an image, of a format that is not read, truncated, damaged, too large, or its
            pixels have no defined white; or it is a contact sheet of fitv2, which is no data.
    """
    content = b""
    try:
        content = _read(file)
        if is_contact_sheet(content):
            raise UnreadableImage("made by fitv2: a contact sheet")
        with _strict_pillow(), open_image(content) as image:
            pixels = image.width * image.height
            if pixels > max_pixels:
                raise Image.DecompressionBombError(f"{image.height}x{image.width} pixels, limit {max_pixels}")
            with _ONE_LARGE if pixels > LARGE else nullcontext():
                whole = check_whole(image, content)
                return _decoded(image, content, mode) if whole is content else _decoded(open_image(whole), whole, mode)
    except UnreadableImage:
        raise
    except Exception as error:  # On damaged files Pillow raises nearly any type, from KeyError to MemoryError.
        raise UnreadableImage(_reason(content, error)) from error


def _read(file: str | Path | BinaryIO) -> bytes:
    if not isinstance(file, str | Path):
        file.seek(0)
        content = file.read(MAX_BYTES + 1)
    else:
        with Path(file).open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UnreadableImage(f"too large: over {MAX_BYTES} bytes")
    return content


def _decoded(image: ImageFile.ImageFile, content: bytes, mode: str) -> Image.Image:
    scale, transparent = scale_of(image), transparent_value(image)
    extent = image.tile[0].extents if image.format == "GIF" else None
    image.load()
    colours, alpha = split_alpha(image, scale, transparent)
    if image.format == "TGA" and not content[17] & 15:  # How many bits of a pixel are alpha.
        alpha = None
    colours = to_srgb(colours, profile_of(image, content))
    if extent not in (None, (0, 0, *image.size)):  # The first frame of an animation need not cover all of it.
        alpha = _only(extent, alpha or Image.new("L", image.size, 255))
    if alpha is not None:
        if alpha.getextrema()[1] == 0:
            raise UnreadableImage("transparent everywhere")
        colours = Image.composite(colours, Image.new(colours.mode, colours.size, "white"), alpha)
    return _upright(colours.convert(mode), image)


def _only(extent: tuple[int, int, int, int], alpha: Image.Image) -> Image.Image:
    """The alpha channel, transparent outside a box."""
    inside = Image.new("L", alpha.size, 0)
    inside.paste(alpha.crop(extent), extent)
    return inside


def _upright(pixels: Image.Image, image: Image.Image) -> Image.Image:
    """Turns the image as the EXIF orientation of the file says. ImageOps.exif_transpose would also rewrite the EXIF,
    which often fails.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Malformed EXIF is common and says nothing about the pixels.
        return pixels
    return pixels.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else pixels


_strict_lock = Lock()
_strict_users = 0
_lenient: tuple = ()


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Sets global switches for decoding, and restores them when no thread decodes any more.

    Half images must not pass for whole ones, long texts are harmless, and libtiff must not write to stderr.
    """
    global _strict_users, _lenient
    with _strict_lock:
        if not _strict_users:
            _lenient = _switched(False, _MAX_TEXT, _MAX_TEXT, None)
        _strict_users += 1
    try:
        yield
    finally:
        with _strict_lock:
            _strict_users -= 1
            if not _strict_users:
                _switched(*_lenient)


def _switched(truncated: bool, chunk: int, memory: int, handler: int | None) -> tuple:
    """Sets the switches of Pillow and the error handler of libtiff; returns the former ones."""
    former = ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    ImageFile.LOAD_TRUNCATED_IMAGES = truncated
    PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = chunk, memory
    return *former, _set_tiff_handler()(handler)


@lru_cache(maxsize=1)
def _set_tiff_handler() -> Callable[[int | None], int | None]:
    """TIFFSetErrorHandler of the libtiff that Pillow uses: its wheels bring one, or it is the system's."""
    home = Path(Image.__file__).parent
    bundled = [*home.parent.glob("pillow.libs/libtiff*"), *home.glob(".dylibs/libtiff*")]
    for name in map(str, [*bundled, "libtiff.so.6", "libtiff.so.5"]):
        with suppress(OSError, AttributeError):
            function = ctypes.CDLL(name).TIFFSetErrorHandler
            function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
            return function
    return lambda handler: None


def _reason(content: bytes, error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"too large: {error}"
    is_tiff = content.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"))
    if is_tiff and int.from_bytes(content[4:8], "little" if content[:1] == b"I" else "big") >= len(content):
        return "truncated or damaged: what describes the image is cut off"
    if is_tiff and (isinstance(error, UnidentifiedImageError) or "raw mode" in str(error)):
        return "not supported: a TIFF of this kind, convert it to PNG"
    if isinstance(error, UnidentifiedImageError):
        return "not an image" if content else "empty file"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read: {error.strerror}"
    return f"truncated or damaged: {error}"

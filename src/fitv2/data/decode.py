"""Decodes image files, of every mode, depth, profile and orientation: the one place where this is done."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import BinaryIO, Literal

import numpy as np
from PIL import ExifTags, Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from ..sample_list import is_contact_sheet
from .colour import to_srgb
from .damage import check_whole
from .formats import UnreadableImage, open_image

Mode = Literal["RGB", "L", "RGBA"]
MAX_PIXELS = 178_000_000
MAX_BYTES = 1 << 30
# Images beyond this are decoded one at a time: with alpha they take over ten bytes a pixel for a moment.
LARGE = 32_000_000
_ONE_LARGE = Lock()
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# From 16 bits to 8, rounded. Pillow's own conversion would clip everything above 255.
_TO_8_BITS = np.floor(np.arange(65536) * (255 / 65535) + 0.5).astype(np.uint8)


def decode(file: str | Path | BinaryIO, mode: Mode = "RGB", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes the first image in a file: upright, in sRGB, alpha on white unless mode has it, 8 bits a channel.

    Sets two switches of Pillow for the whole process: half images must not pass for whole ones, and texts of megabytes
    in a PNG, such as the workflow that made it, are harmless.

    Args:
        file: A path or an open file. Of several images, the first frame, the first page or the primary image counts.
        mode: Pillow's mode of the result.
        max_pixels: Compared with the header, before pixels are decoded. Pillow's own limit holds as well.

    Raises:
        UnreadableImage: The file is not an image, of a kind that is not read, truncated, damaged or too large; or it is
            a contact sheet of fitv2, which is no data.
        MemoryError: There is not enough memory now.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 256 << 20
    content = b""
    try:
        with Path(file).open("rb") if isinstance(file, str | Path) else nullcontext(file) as opened:
            opened.seek(0)
            content = opened.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UnreadableImage(f"too large: over {MAX_BYTES} bytes")
        if is_contact_sheet(content):
            raise UnreadableImage("made by fitv2: a contact sheet")
        _silence_libtiff()
        with open_image(content) as image:
            pixels = image.width * image.height
            if pixels > max_pixels:
                raise UnreadableImage(f"too large: {image.height}x{image.width} pixels, limit {max_pixels}")
            with _ONE_LARGE if pixels > LARGE else nullcontext():
                check_whole(image, content)
                colours, alpha = _colours(image)
                if alpha is not None and mode == "RGBA":
                    colours.putalpha(alpha)
                elif alpha is not None:
                    colours = Image.composite(colours, Image.new(colours.mode, colours.size, "white"), alpha)
                return _upright(colours.convert(mode), image)
    except (UnreadableImage, MemoryError):  # A lack of memory says nothing about the file.
        raise
    except Exception as error:  # On damaged files Pillow raises nearly any type.
        raise UnreadableImage(_reason(content, error)) from error


@lru_cache(maxsize=1)
def _silence_libtiff() -> None:
    """Stops libtiff, which Pillow's wheels bring or the system has, from printing a line about each damaged file."""
    home = Path(Image.__file__).parent
    for name in [*home.parent.glob("pillow.libs/libtiff*"), *home.glob(".dylibs/libtiff*"), "libtiff.so.6"]:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(str(name)).TIFFSetErrorHandler(None)


def _colours(image: ImageFile.ImageFile) -> tuple[Image.Image, Image.Image | None]:
    """Returns the image in sRGB, grey (mode L) or colour, and its alpha (mode L) if it has any."""
    if image.format == "PNG" and isinstance(image.info.get("transparency"), int):
        # Pillow scales grey of 2 and 4 bits to 0 to 255, but not the transparent value.
        image.info["transparency"] *= {"L;2": 85, "L;4": 17}.get(str(image.tile[0].args), 1)
    image.load()
    colours, alpha, profile = image, None, image.info.get("icc_profile")
    if image.mode.startswith("I"):
        colours = Image.fromarray(_TO_8_BITS[np.asarray(image)])
    elif image.has_transparency_data:
        whole = image.convert("RGBA")
        alpha, colours = whole.getchannel("A"), whole.convert("RGB")
        if alpha.getextrema()[1] == 0:
            raise UnreadableImage("transparent everywhere")
    if image.mode in ("1", "L", "LA"):
        colours = colours.convert("L")
    elif image.mode in ("P", "RGBX"):
        colours = colours.convert("RGB")
    return to_srgb(colours, profile), alpha


def _upright(pixels: Image.Image, image: Image.Image) -> Image.Image:
    """Rotates or mirrors by the file's EXIF orientation; ImageOps.exif_transpose would fail on malformed EXIF."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Malformed EXIF is common and says nothing about the pixels.
        return pixels
    return pixels.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else pixels


def _reason(content: bytes, error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"too large: {error}"
    if isinstance(error, UnidentifiedImageError) and content.startswith((b"II*\0", b"MM\0*")):
        return "not supported: a TIFF of this kind or without its end, convert it to PNG"
    if isinstance(error, UnidentifiedImageError):
        return "not an image" if content else "empty file"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read: {error.strerror}"
    return f"truncated or damaged: {error}"

"""Checks that a file holds its first image completely: half an image must not pass for a whole one.

Pillow reports missing data, but decodes the zeros that a broken download leaves as if they were an image. So each
format has its own checks:

    JPEG         an end marker; no run of zeros that the code tables cannot mean
    PNG          the checksums, and the end marker
    WebP         no run of zeros before which the decoder is done
    AVIF, HEIF   no run of zeros of 64 bytes and a 64th of the data
    TIFF         every strip lies within the file; deflate: its checksum; LZW, PackBits: no run of zeros
    BMP          with run lengths: the end marker
    GIF, PPM, other BMP   the length, by Pillow

What cannot be detected: whether zeros in uncompressed pixels (BMP, PPM, TIFF) are black or lost, and a hole of zeros
within a progressive JPEG, of at most one byte per block.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping
from typing import Any

from PIL import Image

from .formats import UnreadableImage, open_image

# Zero bytes in a row that compressed data contain by chance once in 2**512 places.
_RUN = 64
_ZEROS = re.compile(rb"\0{%d,}" % _RUN)
# Where the coded data of a JPEG end: at any marker except a stuffed zero or a restart.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]", re.DOTALL)
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), 0xC2
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Bytes at the end of a WebP that its decoder may not need.
_SLACK = 12
_ZEROS_FOUND = "zeros in the image data"


def check_whole(image: Image.Image, content: bytes) -> None:
    """Raises UnreadableImage, or an error of Pillow, if part of the image is missing.

    image: as opened from the content, its pixels not yet decoded.
    """
    if image.format in ("JPEG", "MPO"):
        _check_jpeg(content)
    elif image.format == "PNG":
        open_image(content).verify()
    elif image.format == "WEBP":
        _check_webp(content)
    elif image.format in ("AVIF", "HEIF"):
        data = content.partition(b"mdat")[2]
        _require(_longest_run(data) < max(_RUN, len(data) / 64), _ZEROS_FOUND)
    elif image.format == "TIFF":
        _check_tiff(getattr(image, "tag_v2", {}), content)
    elif image.format == "BMP" and image.info.get("compression") in (1, 2):
        _require(content.rstrip(b"\0").endswith(b"\1"), "no end of the bitmap")


def _require(whole: bool, why: str) -> None:
    if not whole:
        raise UnreadableImage(f"truncated or damaged: {why}")


def _longest_run(data: bytes) -> int:
    """Returns the length of the longest run of zeros, 0 if below 64."""
    if bytes(_RUN) not in data:  # Much faster than the pattern.
        return 0
    return max(len(run.group()) for run in _ZEROS.finditer(data))


def _is_decoded(content: bytes) -> bool:
    try:
        open_image(content).load()
    except Exception:  # Pillow raises nearly any type.
        return False
    return True


def _check_jpeg(content: bytes) -> None:
    """Walks the segments up to the end of the first image; later ones (MPO, motion photos) and garbage do not count."""
    position, frame, blocks, components = 2, 0, 0, 0
    first_symbols: dict[int, int] = {}
    while (marker := _MARKER.search(content, position)) is not None:
        kind, position = marker.group()[-1], marker.end()
        if kind == 0xD9:
            return
        if kind in (0x01, 0xD8):
            continue
        length = int.from_bytes(content[position : position + 2], "big")
        segment = content[position + 2 : position + length]
        _require(len(segment) == length - 2, "a segment is cut off")
        position += length
        if kind in _FRAMES:
            frame, components, blocks = kind, segment[5], _blocks(segment)
        elif kind == 0xC4:
            first_symbols |= _first_symbols(segment)
        elif kind == 0xDA and (found := _MARKER.search(content, position)) is not None:
            end = found.start()
            run = _longest_run(content[position:end])
            if run and frame in _SEQUENTIAL:
                # Zeros are only plausible if the code of all zero bits means the end of a block.
                plausible = all(first_symbols.get(0x10 | segment[2 + 2 * i] & 15) == 0 for i in range(segment[0]))
                early = segment[0] == components and _is_decoded(content[: end - _RUN])
                _require(plausible and not early, _ZEROS_FOUND)
            _require(run <= blocks or frame not in (*_SEQUENTIAL, _PROGRESSIVE), _ZEROS_FOUND)
            position = end
    _require(False, "no end of the image")


def _blocks(frame: bytes) -> int:
    """Returns the number of blocks of 8x8 in all components, from a frame header."""
    height, width = struct.unpack(">HH", frame[1:5])
    factors = [(frame[7 + 3 * i] >> 4, frame[7 + 3 * i] & 15) for i in range(frame[5])]
    across, down = (max(factor) for factor in zip(*factors, strict=True))
    units = -(-width // (8 * across)) * -(-height // (8 * down))
    return units * sum(horizontal * vertical for horizontal, vertical in factors)


def _first_symbols(tables: bytes) -> dict[int, int]:
    """Returns, by class and number of each Huffman table, the symbol of its code of all zero bits."""
    first, position = {}, 0
    while position + 17 < len(tables):
        first[tables[position]] = tables[position + 17]
        position += 17 + sum(tables[position + 1 : position + 17])
    return first


def _check_webp(content: bytes) -> None:
    """A real image needs all its data, even if it ends in black; one with a hole is complete before."""
    if (chunk := re.search(rb"VP8[ L](.{4})", content, re.DOTALL)) is None:
        return
    data = content[chunk.end() : chunk.end() + int.from_bytes(chunk[1], "little")]
    if _longest_run(data):
        short = struct.pack("<4sI", chunk[0][:4], len(data) - _SLACK) + data[:-_SLACK]
        short += b"\0" * (len(short) % 2)
        _require(not _is_decoded(b"RIFF" + struct.pack("<I", len(short) + 4) + b"WEBP" + short), _ZEROS_FOUND)


def _check_tiff(tags: Mapping[int, Any], content: bytes) -> None:
    compression = tags.get(259, 1)
    for offsets, counts in ((273, 279), (324, 325)):
        for start, count in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False):
            data = content[start : start + count]
            _require(len(data) == count > 0, "image data are cut off")
            if compression in (8, 32946):
                stream = zlib.decompressobj()
                stream.decompress(data)
                _require(stream.eof, "image data are cut off")
            # In LZW and PackBits a run of equal bytes becomes a few codes; a packet that is not a run holds 128 bytes.
            _require(compression not in (5, 32773) or _longest_run(data) <= 128, _ZEROS_FOUND)

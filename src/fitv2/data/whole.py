"""Checks that a file holds the whole of its first image: half an image must not pass for a whole one.

Pillow reports missing data, but decodes the zeros that a broken download leaves as if they were an image. So each
format has its own checks:

    JPEG      an end marker, or every block decoded without one; no run of zeros that the code tables cannot mean
    PNG       the checksums of the image data, and the end marker
    WebP      no run of zeros before which the decoder is done
    AVIF, HEIF, JPEG 2000   no run of zeros of 64 bytes and a 64th of the data; for JPEG 2000 an end marker as well
    TIFF      every strip lies within the file; deflate: its checksum; fax, JPEG, LZW, PackBits: no run of zeros
    QOI       the end marker, and no run of zeros
    BMP       with run lengths: the end marker
    GIF, PPM, TGA, other BMP   the length, by Pillow

What cannot be detected: whether zeros in uncompressed pixels (BMP, PPM, TGA, TIFF) are black or lost, and a hole of
zeros within a progressive JPEG, of at most one byte per block.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import Image

from .containers import boxes, png_chunks, webp_chunks
from .formats import UnreadableImage, open_image

# Zero bytes in a row that compressed data contain by chance once in 2**512 places.
_RUN = 64
_PART = 64
_ZEROS = re.compile(rb"\0{%d,}" % _RUN)
# Where the coded data of a JPEG end: at any marker except a stuffed zero or a restart.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]", re.DOTALL)
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), (0xC2,)
_DEFLATE, _LZW_PACKBITS, _FAX = (8, 32946), (5, 32773), (2, 3, 4)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Bytes at the end of a WebP that its decoder may not need.
_SLACK = 12
# libjpeg reads this far ahead.
_AHEAD = bytes(8)


def check_whole(image: Image.Image, content: bytes) -> bytes:
    """Returns the bytes to decode, nearly always `content`. Raises UnreadableImage if part of the image is missing.

    image: as opened from the content, its pixels not yet decoded.
    """
    if content.startswith(b"\xff\xd8"):
        return _jpeg(content)
    check = {"PNG": _png, "WEBP": _webp, "AVIF": _boxes, "HEIF": _boxes, "JPEG2000": _jpeg2000, "QOI": _qoi}.get(
        image.format or ""
    )
    if check is not None:
        check(content)
    elif image.format == "TIFF":
        _tiff(getattr(image, "tag_v2", {}), content)
    elif image.format == "BMP" and image.info.get("compression") in (1, 2):
        _require(content.rstrip(b"\0").endswith(b"\1"), "no end of the bitmap")
    return content


def _require(whole: bool, why: str) -> None:
    if not whole:
        raise UnreadableImage(f"truncated or damaged: {why}")


def _longest_run(data: bytes) -> int:
    """The length of the longest run of zeros, 0 if below 64."""
    if bytes(_RUN) not in data:  # Much faster than the pattern.
        return 0
    return max((len(run.group()) for run in _ZEROS.finditer(data)), default=0)


def _is_decoded(content: bytes) -> bool:
    try:
        open_image(content).load()
    except Exception:  # Pillow raises nearly any type.
        return False
    return True


def _jpeg(content: bytes) -> bytes:
    """Walks the segments up to the end of the first image; later ones (MPO, motion photos) and garbage do not count."""
    position, frame, scans, blocks, components = 2, 0, 0, 0, 0
    first_symbols: dict[int, int] = {}
    while (marker := _MARKER.search(content, position)) is not None:
        kind, position = marker.group()[-1], marker.end()
        if kind == 0xD9:
            return content
        if kind in (0x01, 0xD8):
            continue
        length = int.from_bytes(content[position : position + 2], "big")
        segment = content[position + 2 : position + length]
        _require(len(segment) == length - 2, "a segment is cut off")
        position += length
        if kind in _FRAMES:
            frame, components, blocks = kind, segment[5], _blocks(segment)
        elif kind == 0xC4:
            first_symbols |= dict(_first_symbols(segment))
        elif kind == 0xDA:
            scans += 1
            end = found.start() if (found := _MARKER.search(content, position)) is not None else len(content)
            run = _longest_run(content[position:end]) if found is not None else 0
            if run and frame in _SEQUENTIAL:
                tables = {0x10 | segment[2 + 2 * i] & 15 for i in range(segment[0])}
                # Zeros are only plausible if the code of all zero bits means the end of a block.
                plausible = all(first_symbols.get(table) == 0 for table in tables)
                early = segment[0] == components and _is_decoded(content[: end - _RUN])
                _require(plausible and not early, "zeros in the image data")
            _require(run <= blocks or frame not in (*_SEQUENTIAL, *_PROGRESSIVE), "zeros in the image data")
            position = end
    _require(scans == 1 and frame in _SEQUENTIAL, "no end of the image")
    # Pillow decodes this only if every block is there.
    return content.rstrip(b"\0") + _AHEAD


def _blocks(frame: bytes) -> int:
    """Blocks of 8x8 in all components, from a frame header."""
    height, width = struct.unpack(">HH", frame[1:5])
    factors = [(frame[7 + 3 * i] >> 4, frame[7 + 3 * i] & 15) for i in range(frame[5])]
    across, down = (max(factor) for factor in zip(*factors, strict=True))
    units = -(-width // (8 * across)) * -(-height // (8 * down))
    return units * sum(horizontal * vertical for horizontal, vertical in factors)


def _first_symbols(tables: bytes) -> Iterator[tuple[int, int]]:
    """Class and number of each Huffman table, and the symbol of its code of all zero bits."""
    position = 0
    while position + 17 <= len(tables):
        symbols = sum(tables[position + 1 : position + 17])
        yield tables[position], tables[position + 17] if symbols else -1
        position += 17 + symbols


def _png(content: bytes) -> None:
    for chunk in png_chunks(content):
        # Pillow checks the other chunks, but not the image data.
        if chunk.kind in (b"IDAT", b"IEND"):
            _require(zlib.crc32(chunk.checked).to_bytes(4, "big") == chunk.crc, "wrong checksum of the image data")
        if chunk.kind == b"IEND":
            return
    _require(False, "no end of the image")


def _webp(content: bytes) -> None:
    for kind, data in webp_chunks(content):
        if kind in (b"VP8 ", b"VP8L"):
            if _longest_run(data):
                # A real image needs all its data, even if it ends in black; one with a hole is complete before.
                chunk = struct.pack("<4sI", kind, len(data) - _SLACK) + data[:-_SLACK]
                chunk += b"\0" * (len(chunk) % 2)
                alone = b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk
                _require(not _is_decoded(alone), "zeros in the image data")
            return


def _boxes(content: bytes) -> None:
    for kind, data in boxes(content):
        if kind == b"mdat":
            _require(_longest_run(data) < max(_RUN, len(data) / _PART), "zeros in the image data")


def _jpeg2000(content: bytes) -> None:
    data = content
    if not content.startswith(b"\xff\x4f"):
        data = next((data for kind, data in boxes(content) if kind == b"jp2c"), b"")
    _require(data.rstrip(b"\0").endswith(b"\xff\xd9"), "no end of the image")
    _require(_longest_run(data) < max(_RUN, len(data) / _PART), "zeros in the image data")


def _qoi(content: bytes) -> None:
    _require(content.endswith(b"\0\0\0\0\0\0\0\1"), "no end of the image")
    # An encoder never names the same earlier pixel twice in a row.
    _require(not _longest_run(content), "zeros in the image data")


def _tiff(tags: Mapping[int, Any], content: bytes) -> None:
    width = tags.get(322, tags[256])
    pixels = width * tags.get(323, min(tags.get(278, tags[257]), tags[257]))
    for offsets, counts in ((273, 279), (324, 325)):
        for start, count in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False):
            _require(count > 0 and start + count <= len(content), "image data are cut off")
            _strip(content[start : start + count], tags.get(259, 1), pixels)


def _strip(data: bytes, compression: int, pixels: int) -> None:
    if compression in _DEFLATE:
        stream = zlib.decompressobj()
        try:
            stream.decompress(data)
        except zlib.error as error:
            _require(False, str(error))
        _require(stream.eof, "image data are cut off")
    elif compression == 7:
        # Zeros mean a few bits for each of three blocks of 8x8 at most.
        _require(b"\xff\xd9" in data[-16:], "no end of the image")
        _require(_longest_run(data) <= max(_RUN, 3 * pixels / 64), "zeros in the image data")
    elif compression in _LZW_PACKBITS:
        # A run of equal bytes becomes a few codes; a packet that is not a run holds 128 bytes.
        _require(_longest_run(data) <= 128, "zeros in the image data")
    elif compression in _FAX:
        # No code has more than eleven zero bits.
        _require(not _longest_run(data), "zeros in the image data")

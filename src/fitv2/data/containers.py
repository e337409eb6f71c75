"""The parts of image files: chunks of PNG and RIFF (WebP), boxes of ISO media (AVIF, HEIF, JPEG 2000)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple


class Chunk(NamedTuple):
    """Part of a PNG. crc: the stored checksum; checked: the bytes it covers. Both are shorter in a cut-off file."""

    kind: bytes
    data: memoryview
    crc: memoryview
    checked: memoryview


def png_chunks(content: bytes) -> Iterator[Chunk]:
    view, position = memoryview(content), 8
    while position + 8 <= len(content):
        length, kind = struct.unpack(">I4s", view[position : position + 8])
        end = position + 8 + length
        yield Chunk(kind, view[position + 8 : end], view[end : end + 4], view[position + 4 : end])
        position = end + 4


def webp_chunks(content: bytes, position: int = 12, end: int | None = None) -> Iterator[tuple[bytes, bytes]]:
    """Yields kind and data of each chunk; animation frames are replaced by the chunks within them."""
    end = len(content) if end is None else end
    while position + 8 <= end:
        kind, length = struct.unpack("<4sI", content[position : position + 8])
        position += 8
        if kind == b"ANMF":
            yield from webp_chunks(content, position + 16, position + length)
        else:
            yield kind, content[position : position + length]
        position += length + length % 2


def boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields kind and content of consecutive boxes."""
    position = 0
    while position + 8 <= len(content):
        length, kind = struct.unpack(">I4s", content[position : position + 8])
        start = position + 8
        if length == 1:
            length, start = int.from_bytes(content[start : start + 8], "big"), start + 8
        end = position + length if length else len(content)
        if end < start:
            return
        yield kind, content[start:end]
        position = end


def boxes_within(content: bytes, outer: bytes, *inner: bytes) -> Iterator[bytes]:
    """Yields the content of every box at a path of nested kinds."""
    for kind, data in boxes(content):
        if kind == outer:
            # Only this kind begins with a version and flags.
            yield from boxes_within(data[4:] if kind == b"meta" else data, *inner) if inner else (data,)

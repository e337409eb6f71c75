"""Writers of image files in every format, mode and depth, for the tests of decoding.

By struct and zlib where Pillow cannot write a file, or would leave out what matters.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image


def scene(rng: np.random.Generator, height: int, width: int, channels: int = 3) -> np.ndarray:
    """(height, width, channels) in [0, 1]: smooth, with black and white in it, and different in every direction."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(2 * np.pi * (a * y + b * x + c)) for a, b, c in rng.uniform(0.2, 1.3, (channels, 3))]
    image = np.stack(waves, -1)
    image = (image - image.min()) / (image.max() - image.min())
    image[0, 0], image[-1, -1] = 0, 1
    return image


def quantised(image: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers of a bit depth, and what they mean in [0, 1]."""
    values = np.rint(image * (2**bits - 1)).astype(np.int64)
    return values, values / (2**bits - 1)


def packed(values: np.ndarray, bits: int, order: str = ">") -> bytes:
    """Rows of numbers, first bit highest, each row filled to whole bytes; 16 and 32 bits in a byte order."""
    rows = values.reshape(len(values), -1)
    if bits in (8, 16, 32):
        return rows.astype(f"{order}u{bits // 8}" if rows.min() >= 0 else f"{order}i{bits // 8}").tobytes()
    return np.packbits(
        (rows[..., None] >> np.arange(bits)[::-1] & 1).reshape(len(rows), -1).astype(np.uint8), 1
    ).tobytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png(values: np.ndarray, bits: int, kind: int, chunks: bytes = b"", interlaced: bool = False) -> bytes:
    """kind: 0 grey, 2 colour, 3 palette, 4 grey and alpha, 6 colour and alpha. chunks: between header and data."""
    height, width = values.shape[:2]
    lines = b""
    for top, left, down, across in PASSES if interlaced else ((0, 0, 1, 1),):
        for row in values[top::down, left::across]:
            lines += b"\0" + packed(row[None], bits) if row.size else b""
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + chunks + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


COMPRESSIONS: dict[int, Callable[[bytes], bytes]] = {1: bytes, 8: zlib.compress}


def tiff(
    values: np.ndarray,
    bits: int,
    photometric: int | None,
    *,
    order: str = "<",
    compression: int = 1,
    planes: bool = False,
    reverse: bool = False,
    tags: dict[int, tuple[str, tuple]] | None = None,
) -> bytes:
    """values: (h, w) or (h, w, samples). reverse: the lowest bit comes first. tags: others, number to (struct's letter,
    values).
    """
    height, width = values.shape[:2]
    samples = values.shape[2] if values.ndim == 3 else 1
    strips, rows = [], 7
    for layer in [values[..., i] for i in range(samples)] if planes else [values]:
        for top in range(0, height, rows):
            data = COMPRESSIONS[compression](packed(layer[top : top + rows], bits, order))
            strips.append(bytes(int(f"{byte:08b}"[::-1], 2) for byte in data) if reverse else data)
    entries = {256: ("I", (width,)), 257: ("I", (height,)), 258: ("H", (bits,) * samples), 259: ("H", (compression,))}
    entries |= {277: ("H", (samples,)), 278: ("I", (rows,)), 279: ("I", tuple(map(len, strips)))}
    entries |= {262: ("H", (photometric,))} if photometric is not None else {}
    entries |= {284: ("H", (2,))} if planes else {}
    entries |= {266: ("H", (2,))} if reverse else {}
    starts = np.cumsum([8, *map(len, strips)]).tolist()
    entries |= {273: ("I", tuple(starts[:-1]))} | (tags or {})
    at = starts[-1] + starts[-1] % 2
    directory, extra = struct.pack(order + "H", len(entries)), b""
    for number, (letter, content) in sorted(entries.items()):
        data = struct.pack(f"{order}{len(content)}{letter}", *content)
        if len(data) > 4:
            pointer = struct.pack(order + "I", at + 6 + 12 * len(entries) + len(extra))
            extra, data = extra + data + b"\0" * (len(data) % 2), pointer
        directory += struct.pack(order + "HHI", number, {"B": 1, "H": 3, "I": 4}[letter], len(content))
        directory += data.ljust(4, b"\0")
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", at)
    return (header + b"".join(strips)).ljust(at, b"\0") + directory + bytes(4) + extra


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(image: np.ndarray) -> Image.Image:
    """Of values in [0, 1]."""
    return Image.fromarray(np.rint(255 * image).astype(np.uint8))


def adobe_rgb() -> bytes:
    """A version 2 profile of Adobe RGB (1998): its primaries at D50, gamma 2 + 51 / 256."""
    fixed = lambda *v: struct.pack(f">{len(v)}i", *(round(x * 65536) for x in v))  # noqa: E731
    xyz = {
        b"rXYZ": (0.60974, 0.31111, 0.01947),
        b"gXYZ": (0.20528, 0.62567, 0.06087),
        b"bXYZ": (0.14919, 0.06322, 0.74457),
    }
    return _profile(
        b"RGB ", {name: b"XYZ \0\0\0\0" + fixed(*v) for name, v in xyz.items()}, 563, b"rTRC", b"gTRC", b"bTRC"
    )


def grey_gamma(gamma: float) -> bytes:
    return _profile(b"GRAY", {}, round(256 * gamma), b"kTRC")


def _profile(space: bytes, tags: dict[bytes, bytes], gamma: int, *curves: bytes) -> bytes:
    tags = tags | {name: b"curv\0\0\0\0" + struct.pack(">IH", 1, gamma) + b"\0\0" for name in curves}
    tags[b"wtpt"] = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    tags[b"desc"] = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)
    table, data = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        value += b"\0" * (-len(value) % 4)
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(data), len(value))
        data += value
    size = 132 + 12 * len(tags) + len(data)
    header = (
        struct.pack(">I4sI4s4s4s", size, b"", 0x02100000, b"mntr", space, b"XYZ ") + bytes(12) + b"acsp" + bytes(28)
    )
    return (header + struct.pack(">3i", 63190, 65536, 54061)).ljust(128, b"\0") + table + data


# From linear Adobe RGB to linear sRGB, both of white D65 (Adobe RGB (1998), IEC 61966-2-1).
ADOBE_TO_SRGB = np.array([[1.39836, -0.39836, 0.0], [0.0, 1.0, 0.0], [0.0, -0.04293, 1.04293]])


def srgb_curve(linear: np.ndarray) -> np.ndarray:
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def from_adobe(values: np.ndarray) -> np.ndarray:
    """(…, 3) in [0, 1] of Adobe RGB to the expected pixels."""
    return srgb_curve(values ** (563 / 256) @ ADOBE_TO_SRGB.T)


def grey(image: np.ndarray) -> np.ndarray:
    """(h, w) in [0, 1] to the expected pixels."""
    return np.repeat(255.0 * image[..., None], 3, 2)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Both in their own range of 0 to 255, alpha (h, w) in 0 to 1."""
    return 255 + (colour - 255.0) * alpha[..., None]


# What each orientation says has to be done to the stored rows and columns (EXIF 2.32, section 4.6.4 A).
ORIENTATIONS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}

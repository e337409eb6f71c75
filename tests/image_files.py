"""Image files of every format, mode, depth and orientation with known pixels, for the tests of decoding.

Written by struct and zlib where Pillow cannot write them, or would leave out what matters. The expected pixels follow
from the specifications and not from Pillow.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import ExifTags, Image, ImageCms

try:
    from pillow_heif import register_heif_opener
except ImportError:  # It is optional: without it there are no cases of HEIC.
    pass
else:
    register_heif_opener()  # So that Pillow can write such files.


@dataclass(frozen=True)
class Case:
    """A file. expected: (h, w, 3) in [0, 255]; None where it must be refused. mean, most: errors that are allowed.
    refusable: it may be refused instead.
    """

    name: str
    content: bytes
    expected: np.ndarray | None
    mean: float = 0.5
    most: float = 1.01
    refusable: bool = False
    options: dict = field(default_factory=dict)


def scene(rng: np.random.Generator, height: int, width: int, channels: int = 3) -> np.ndarray:
    """(height, width, channels) in [0, 1]: smooth, with black and white in it, and different in every direction."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(2 * np.pi * (a * y + b * x + c)) for a, b, c in rng.uniform(0.2, 1.3, (channels, 3))]
    image = np.stack(waves, -1)
    image = (image - image.min()) / (image.max() - image.min())
    image[0, 0], image[-1, -1] = 0, 1
    return image


def grey(image: np.ndarray) -> np.ndarray:
    """(h, w) in [0, 1] to the expected pixels."""
    return np.repeat(255.0 * image[..., None], 3, 2)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Both in their own range of 0 to 255, alpha (h, w) in 0 to 1."""
    return 255 + (colour - 255.0) * alpha[..., None]


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


def png(
    values: np.ndarray, bits: int, kind: int, chunks: bytes = b"", interlaced: bool = False, level: int = 6
) -> bytes:
    """kind: 0 grey, 2 colour, 3 palette, 4 grey and alpha, 6 colour and alpha. chunks: between header and data."""
    height, width = values.shape[:2]
    lines = b""
    for top, left, down, across in PASSES if interlaced else ((0, 0, 1, 1),):
        for row in values[top::down, left::across]:
            lines += b"\0" + packed(row[None], bits) if row.size else b""
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + chunks + chunk(b"IDAT", zlib.compress(lines, level)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def packbits(data: bytes) -> bytes:
    return b"".join(bytes([len(part) - 1]) + part for i in range(0, len(data), 128) if (part := data[i : i + 128]))


def lzw(data: bytes) -> bytes:
    """Literal codes of nine bits, with a fresh table before they would need ten."""
    codes = [code for i in range(0, len(data), 200) for code in (256, *data[i : i + 200])] + [257]
    return np.packbits((np.array(codes)[:, None] >> np.arange(9)[::-1] & 1).ravel().astype(np.uint8)).tobytes()


COMPRESSIONS: dict[int, Callable[[bytes], bytes]] = {1: bytes, 5: lzw, 8: zlib.compress, 32773: packbits}


def tiff(
    values: np.ndarray,
    bits: int,
    photometric: int | None,
    *,
    order: str = "<",
    compression: int = 1,
    kind: int = 1,
    planes: bool = False,
    reverse: bool = False,
    rows: int = 7,
    tags: dict[int, tuple[str, tuple]] | None = None,
    last: bool = False,
) -> bytes:
    """values: (h, w) or (h, w, samples). kind: 1 unsigned, 2 signed, 3 float. reverse: the lowest bit comes first.
    tags: others, number to (struct's letter, values). last: the directory stands behind the pixels.
    """
    height, width = values.shape[:2]
    samples = values.shape[2] if values.ndim == 3 else 1
    layers = [values[..., i] for i in range(samples)] if planes else [values]
    strips = []
    for layer in layers:
        for top in range(0, height, rows):
            part = layer[top : top + rows]
            data = part.astype(f"{order}f4").tobytes() if kind == 3 else packed(part, bits, order)
            data = COMPRESSIONS[compression](data)
            strips.append(bytes(int(f"{byte:08b}"[::-1], 2) for byte in data) if reverse else data)
    entries = {256: ("I", (width,)), 257: ("I", (height,)), 258: ("H", (bits,) * samples), 259: ("H", (compression,))}
    entries |= {277: ("H", (samples,)), 278: ("I", (rows,)), 279: ("I", tuple(map(len, strips)))}
    entries |= {262: ("H", (photometric,))} if photometric is not None else {}
    entries |= {284: ("H", (2,))} if planes else {}
    entries |= {266: ("H", (2,))} if reverse else {}
    entries |= {339: ("H", (kind,) * samples)} if kind != 1 else {}
    entries |= tags or {}
    kinds = {"B": 1, "H": 3, "I": 4, "f": 11, "h": 8, "i": 9, "S": 7}
    entries[273] = ("I", (0,) * len(strips))
    size = 2 + 12 * len(entries) + 4
    extra_size = sum(
        n + n % 2 for letter, v in entries.values() if (n := len(v) * struct.calcsize(letter.replace("S", "B"))) > 4
    )
    start = 8 + (0 if last else size + extra_size)
    offsets = np.cumsum([start] + [len(strip) + len(strip) % 2 for strip in strips])
    entries[273] = ("I", tuple(offsets[:-1].tolist()))
    at = int(offsets[-1]) if last else 8
    directory, extra = struct.pack(order + "H", len(entries)), b""
    for number, (letter, content) in sorted(entries.items()):
        data = struct.pack(f"{order}{len(content)}{letter.replace('S', 'B')}", *content)
        if len(data) > 4:
            pointer, data = struct.pack(order + "I", at + size + len(extra)), data + b"\0" * (len(data) % 2)
            extra, data = extra + data, pointer
        directory += struct.pack(order + "HHI", number, kinds[letter], len(content)) + data.ljust(4, b"\0")
    directory += bytes(4) + extra
    pixels = b"".join(strip + b"\0" * (len(strip) % 2) for strip in strips)
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", at)
    return header + (pixels + directory if last else directory + pixels)


def bmp(values: np.ndarray, bits: int, palette: np.ndarray | None = None, masks: tuple[int, ...] = ()) -> bytes:
    """values: (h, w) whole numbers of a bit depth, or (h, w, 3) for 24. masks: of red, green, blue and alpha."""
    height, width = values.shape[:2]
    rows = []
    for row in values[::-1]:
        line = row[:, ::-1].astype(np.uint8).tobytes() if bits == 24 else packed(row[None], bits, "<")
        rows.append(line + b"\0" * (-len(line) % 4))
    data = b"".join(rows)
    colours = b"" if palette is None else np.insert(palette[:, ::-1], 3, 0, 1).astype(np.uint8).tobytes()
    size = 124 if masks else 40
    header = struct.pack(
        "<IiiHHIIiiII", size, width, height, 1, bits, 3 if masks else 0, len(data), 0, 0, len(colours) // 4, 0
    )
    header += struct.pack("<4I", *masks) + b"BGRs" + bytes(64) if masks else b""
    start = 14 + size + len(colours)
    return struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start) + header + colours + data


def saved(image: Image.Image, kind: str, **options) -> bytes:
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
LOSSY = {"mean": 4.0, "most": 256.0}


def png_cases(rng: np.random.Generator, h: int, w: int) -> Iterator[Case]:
    image, plane, alpha = scene(rng, h, w), scene(rng, h, w, 1)[..., 0], scene(rng, h, w, 1)[..., 0]
    for bits in (1, 2, 4, 8, 16):
        values, shown = quantised(plane, bits)
        for interlaced in (False, True):
            yield Case(
                f"png grey {bits} interlaced {interlaced}", png(values, bits, 0, interlaced=interlaced), grey(shown)
            )
        # Of 16 bits, one that shares its upper byte with others.
        clear = values[h // 2, w // 2]
        chunks = chunk(b"tRNS", struct.pack(">H", clear))
        yield Case(f"png grey {bits} tRNS", png(values, bits, 0, chunks), on_white(grey(shown), values != clear))
        if bits < 16:
            indices = values % min(2**bits, 7)
            palette = rng.integers(0, 256, (2**bits, 3))
            chunks = chunk(b"PLTE", palette.astype(np.uint8).tobytes())
            yield Case(f"png palette {bits}", png(indices, bits, 3, chunks), palette[indices])
            alphas = rng.integers(0, 256, 2**bits)
            for name, some in (("some", alphas), ("one", np.where(np.arange(2**bits) == 1, 0, 255))):
                data = png(indices, bits, 3, chunks + chunk(b"tRNS", some.astype(np.uint8).tobytes()))
                yield Case(f"png palette {bits} tRNS {name}", data, on_white(palette[indices], some[indices] / 255))
    for bits in (8, 16):
        values, shown = quantised(image, bits)
        levels, opacity = quantised(alpha, bits)
        yield Case(f"png colour {bits}", png(values, bits, 2), 255 * shown)
        yield Case(f"png colour {bits} interlaced", png(values, bits, 2, interlaced=True), 255 * shown)
        data = png(np.dstack([values, levels]), bits, 6)
        yield Case(f"png colour alpha {bits}", data, on_white(255 * shown, opacity), most=2.01)
        data = png(np.dstack([values[..., 0], levels]), bits, 4)
        yield Case(f"png grey alpha {bits}", data, on_white(grey(shown[..., 0]), opacity), most=2.01)
        clear = values[h // 2, w // 2]
        expected = on_white(255 * shown, (values != clear).any(2))
        data = png(values, bits, 2, chunk(b"tRNS", struct.pack(">3H", *clear)))
        yield Case(f"png colour {bits} tRNS", data, expected, refusable=bits == 16)
    values, shown = quantised(image, 8)
    workflow = chunk(b"tEXt", b"workflow\0" + b"{}, " * 400_000) + chunk(
        b"zTXt", b"prompt\0\0" + zlib.compress(bytes(3 << 20))
    )
    yield Case("png text of megabytes", png(values, 8, 2, workflow), 255 * shown)
    for name, gamma in (("linear", 1.0), ("1.8", 1 / 1.8)):
        data = png(values, 8, 2, chunk(b"gAMA", struct.pack(">I", round(1e5 * gamma))))
        yield Case(f"png gAMA {name}", data, srgb_curve(shown ** (1 / gamma)), most=2.01)
    primaries = (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
    chunks = chunk(b"gAMA", struct.pack(">I", 45470)) + chunk(
        b"cHRM", struct.pack(">8I", *(round(1e5 * v) for v in primaries))
    )
    yield Case("png cHRM", png(values, 8, 2, chunks), from_adobe(shown), mean=0.7, most=3.5)
    chunks = chunk(b"sRGB", b"\0") + chunk(b"gAMA", struct.pack(">I", 45455))
    yield Case("png sRGB", png(values, 8, 2, chunks), 255 * shown)
    yield Case("png PQ", png(values, 8, 2, chunk(b"cICP", bytes((9, 16, 0, 1)))), None)


def tiff_cases(rng: np.random.Generator, h: int, w: int) -> Iterator[Case]:
    plane, image, alpha = scene(rng, h, w, 1)[..., 0], scene(rng, h, w), scene(rng, h, w, 1)[..., 0]
    for order in "<>":
        for compression in COMPRESSIONS:
            name = f"tiff {order}{compression}"
            common = {"order": order, "compression": compression}
            for bits in (1, 2, 4, 8, 10, 12, 14, 16):
                values, shown = quantised(plane, bits)
                for photometric in (0, 1):
                    stored = values if photometric else 2**bits - 1 - values
                    for reverse in (False, True):
                        data = tiff(stored, bits, photometric, reverse=reverse, **common)
                        told = f"{name} {bits} photometric {photometric} reverse {reverse}"
                        yield Case(told, data, grey(shown), refusable=bits > 8 or reverse)
            for bits in (8, 16):
                values, shown = quantised(image, bits)
                levels, opacity = quantised(alpha, bits)
                whole = np.dstack([values, levels])
                for planes in (False, True):
                    told = f"{name} {bits} planes {planes}"
                    yield Case(
                        f"{told} colour", tiff(values, bits, 2, planes=planes, **common), 255 * shown, refusable=planes
                    )
                    data = tiff(whole, bits, 2, planes=planes, tags={338: ("H", (2,))}, **common)
                    yield Case(f"{told} alpha", data, on_white(255 * shown, opacity), most=2.01, refusable=planes)
                    data = tiff(whole, bits, 2, planes=planes, tags={338: ("H", (0,))}, **common)
                    yield Case(f"{told} unspecified", data, 255 * shown, refusable=True)
                premultiplied = np.dstack([np.rint(values * opacity[..., None]).astype(np.int64), levels])
                data = tiff(premultiplied, bits, 2, tags={338: ("H", (1,))}, **common)
                yield Case(
                    f"{name} {bits} premultiplied", data, on_white(255 * shown, opacity), 1, 3.01, refusable=True
                )
                data = tiff(np.dstack([values[..., 0], levels]), bits, 1, tags={338: ("H", (2,))}, **common)
                yield Case(
                    f"{name} {bits} grey alpha",
                    data,
                    on_white(grey(shown[..., 0]), opacity),
                    most=2.01,
                    refusable=bits > 8,
                )
                ink, paper = quantised(scene(rng, h, w, 4), bits)
                expected = 255 * (1 - paper[..., :3]) * (1 - paper[..., 3:])
                yield Case(f"{name} {bits} cmyk", tiff(ink, bits, 5, **common), expected, most=3.01, refusable=bits > 8)
                data = tiff(ink, bits, 5, planes=True, **common)
                yield Case(f"{name} {bits} cmyk planes", data, expected, most=3.01, refusable=True)
            for bits in (1, 2, 4, 8):
                indices = quantised(plane, bits)[0]
                palette = rng.integers(0, 256, (2**bits, 3))
                tags = {320: ("H", tuple((257 * palette).T.ravel().tolist()))}
                yield Case(f"{name} palette {bits}", tiff(indices, bits, 3, tags=tags, **common), palette[indices])
        values = quantised(plane, 16)[0]
        lowest, highest = {340: ("H", (0,))}, {341: ("H", (65535,))}
        yield Case(f"tiff {order} named white", tiff(values, 16, 1, order=order, tags=lowest | highest), grey(plane))
        few, shown = quantised(plane, 12)
        data = tiff(few, 16, 1, order=order, tags={341: ("H", (4095,))})
        yield Case(f"tiff {order} 12 bits in 16", data, grey(shown), refusable=True)
        floats = {340: ("f", (-2.0,)), 341: ("f", (6.0,))}
        data = tiff(8 * plane - 2, 32, 1, kind=3, order=order, tags=floats)
        yield Case(f"tiff {order} float of named range", data, grey(plane))
        for name, data in {
            "float": tiff(plane, 32, 1, kind=3, order=order),
            "signed 8": tiff(quantised(plane, 8)[0] - 128, 8, 1, kind=2, order=order),
            "signed 16": tiff(few - 2048, 16, 1, kind=2, order=order),
            "signed 16 positive": tiff(few, 16, 1, kind=2, order=order),
            "12 bits in 32": tiff(few, 32, 1, order=order),
            "12 bits in signed 32": tiff(few, 32, 1, kind=2, order=order),
            "32 full": tiff(quantised(plane, 32)[0], 32, 1, order=order),
            "no photometric": tiff(values, 16, None, order=order),
            "thumbnail of a camera": tiff(quantised(image, 8)[0], 8, 2, order=order, tags={254: ("I", (1,))}),
            "DNG": tiff(quantised(image, 8)[0], 8, 2, order=order, tags={50706: ("B", (1, 4, 0, 0))}),
            "strips beyond the end": tiff(values, 16, 1, order=order)[:-9],
        }.items():
            yield Case(f"tiff {order} {name}", data, None)
    # A neutral grey ramp has a = b = 0.
    lightness = np.rint(255 * plane)
    lab = np.dstack([lightness, np.zeros((h, w, 2))]).astype(np.int64)
    f = (lightness / 2.55 + 16) / 116
    linear = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    yield Case("tiff lab", tiff(lab, 8, 8), np.repeat(srgb_curve(linear)[..., None], 3, 2), most=3.01)
    values, shown = quantised(image, 8)
    yuv = np.asarray(Image.fromarray(values.astype(np.uint8)).convert("YCbCr")).astype(np.int64)
    data = tiff(yuv, 8, 6, tags={530: ("H", (1, 1))})
    yield Case("tiff ycbcr", data, 255 * shown, 2, 5)
    yield Case("tiff ycbcr subsampled", tiff(yuv, 8, 6), None)
    for quality in (95,):
        big = scene(rng, 64, 80)
        yield Case("tiff jpeg", saved(pixels(big), "TIFF", compression="jpeg", quality=quality), 255 * big, **LOSSY)


def other_cases(rng: np.random.Generator, h: int, w: int) -> Iterator[Case]:
    image, plane, alpha = scene(rng, h, w), scene(rng, h, w, 1)[..., 0], scene(rng, h, w, 1)[..., 0]
    values, shown = quantised(image, 8)
    levels, opacity = quantised(alpha, 8)
    for most in (1, 15, 100, 255, 256, 1023, 4095, 65535):
        kind = "u1" if most < 256 else ">u2"
        numbers = np.rint(image * most).astype(np.int64)
        size = f"\n{w} {h}\n{most}\n".encode()
        expected = 255 * numbers / most
        yield Case(f"ppm {most}", b"P6" + size + numbers.astype(kind).tobytes(), expected)
        text = " ".join(map(str, numbers.ravel())).encode()
        yield Case(f"ppm text {most}", b"P3" + size + text, expected)
        yield Case(f"pgm {most}", b"P5" + size + numbers[..., 0].astype(kind).tobytes(), grey(numbers[..., 0] / most))
        text = " ".join(map(str, numbers[..., 0].ravel())).encode()
        yield Case(f"pgm text {most}", b"P2" + size + text, grey(numbers[..., 0] / most))
    bits, black = quantised(plane, 1)
    yield Case("pbm", f"P4\n{w} {h}\n".encode() + packed(1 - bits, 1), grey(black))
    yield Case("pfm", f"Pf\n{w} {h}\n-1\n".encode() + plane.astype("<f4").tobytes(), None)
    for depth in (1, 4, 8):
        indices = quantised(plane, depth)[0]
        palette = rng.integers(0, 256, (2**depth, 3))
        yield Case(f"bmp palette {depth}", bmp(indices, depth, palette), palette[indices])
    yield Case("bmp 24", bmp(values, 24), 255 * shown)
    fives, five = quantised(image, 5)
    word = fives[..., 0] << 10 | fives[..., 1] << 5 | fives[..., 2]
    yield Case("bmp 16", bmp(word, 16), 255 * five, most=5)
    word = values[..., 0] << 16 | values[..., 1] << 8 | values[..., 2]
    yield Case("bmp 32", bmp(word, 32), 255 * shown)
    masks = 0xFF0000, 0xFF00, 0xFF, 0xFF000000
    yield Case("bmp 32 alpha", bmp(word | levels << 24, 32, masks=masks), on_white(255 * shown, opacity), most=2.01)
    colour, whole = pixels(image), Image.fromarray(np.dstack([values, levels]).astype(np.uint8))
    two = Image.merge("LA", [colour.getchannel(0), Image.fromarray(levels.astype(np.uint8))])
    for kind in ("TGA", "QOI", "JPEG2000", "WEBP", "TIFF"):
        options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        yield Case(f"{kind} colour", saved(colour, kind, **options), 255 * shown)
        yield Case(f"{kind} alpha", saved(whole, kind, **options), on_white(255 * shown, opacity), most=2.01)
    tga = saved(whole, "TGA")
    yield Case("TGA of 32 bits without alpha", tga[:17] + bytes([tga[17] & 0xF0]) + tga[18:], 255 * shown)
    yield Case("TGA run lengths", saved(colour, "TGA", compression="tga_rle"), 255 * shown)
    yield Case("TGA grey alpha", saved(two, "TGA"), on_white(grey(shown[..., 0]), opacity), most=2.01)
    for depth in (8, 16):
        numbers, known = quantised(plane, depth)
        data = saved(Image.fromarray(numbers.astype(f"u{depth // 8}")), "JPEG2000")
        yield Case(f"JPEG2000 grey {depth}", data, grey(known))
    indices = quantised(plane, 4)[0]
    palette = rng.integers(0, 256, (16, 3))
    indexed = Image.fromarray(indices.astype(np.uint8))
    indexed.putpalette(palette.astype(np.uint8).tobytes())
    clear = int(indices[h // 2, w // 2])
    yield Case("gif", saved(indexed, "GIF"), palette[indices])
    yield Case(
        "gif transparent", saved(indexed, "GIF", transparency=clear), on_white(palette[indices], indices != clear)
    )
    frames = {"save_all": True, "append_images": [Image.new("RGB", (w, h), "red"), Image.new("RGB", (w, h), "lime")]}
    yield Case(
        "gif animated",
        saved(indexed.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE), "GIF", **frames),
        palette[indices],
    )
    yield Case("png animated", saved(colour, "PNG", **frames), 255 * shown)
    yield Case("webp animated", saved(colour, "WEBP", lossless=True, **frames), 255 * shown)
    yield Case("tiff pages", saved(colour, "TIFF", **frames), 255 * shown)
    for name, data in {
        "svg": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"/>',
        "psd": b"8BPS\0\1" + bytes(40),
        "zip": b"PK\3\4" + bytes(40),
        "html": b"<html>404 not found</html>",
        "heic without data": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40),
        "video": b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(40),
    }.items():
        yield Case(name, data, None)


def photo_cases(rng: np.random.Generator, h: int, w: int) -> Iterator[Case]:
    """Lossy formats, in larger sizes; orientation; profiles; HEIC where it can be written."""
    image = scene(rng, 8 * h, 8 * w)
    colour, expected = pixels(image), 255 * image
    ink = colour.convert("CMYK")
    for name, data in {
        "jpeg": saved(colour, "JPEG", quality=95, subsampling=0),
        "jpeg progressive": saved(colour, "JPEG", quality=95, progressive=True),
        "jpeg optimised": saved(colour, "JPEG", quality=95, optimize=True, restart_marker_rows=1),
        "jpeg cmyk": saved(ink, "JPEG", quality=95),
        "jpeg named png": saved(colour, "JPEG", quality=95) + b"garbage" * 20,
        "jpeg padded": saved(colour, "JPEG", quality=95) + bytes(4096),
        "jpeg without end": saved(colour, "JPEG", quality=95)[:-2],
        "jpeg with a video": saved(colour, "JPEG", quality=95) + b"\0\0\0\x18ftypmp42" + bytes(5000),
        "mpo": saved(colour, "MPO", quality=95, save_all=True, append_images=[Image.new("RGB", colour.size, "red")]),
        "webp": saved(colour, "WEBP", quality=95),
        "avif": saved(colour, "AVIF", quality=95, subsampling="4:4:4"),
        "jpeg 2000 lossy": saved(colour, "JPEG2000", irreversible=True, quality_mode="dB", quality_layers=[50]),
    }.items():
        yield Case(name, data, expected, **LOSSY)
    yield Case("jpeg grey", saved(colour.getchannel(0), "JPEG", quality=95), grey(image[..., 0]), **LOSSY)
    cmyk = saved(ink, "JPEG", quality=95)
    bare = cmyk[: (at := cmyk.index(b"\xff\xee"))] + cmyk[at + 16 :]
    yield Case("jpeg cmyk without Adobe's marker", bare, None)
    opacity = scene(rng, 8 * h, 8 * w, 1)[..., 0]
    whole = Image.merge("RGBA", [*colour.split(), pixels(opacity)])
    for kind in ("WEBP", "AVIF"):
        yield Case(f"{kind} lossy alpha", saved(whole, kind, quality=95), on_white(expected, opacity), 5, 256)
    for orientation, turned in ORIENTATIONS.items():
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"):
            if kind in Image.SAVE:
                data = saved(colour, kind, exif=exif, **({"quality": 95} if kind not in ("PNG", "TIFF") else {}))
                # A HEIC is turned by its container alone; pillow-heif cannot write that.
                yield Case(
                    f"{kind} orientation {orientation}", data, expected if kind == "HEIF" else turned(expected), **LOSSY
                )
    broad = from_adobe(np.rint(expected) / 255)
    for kind in ("PNG", "TIFF", "JPEG", "WEBP", "AVIF", "HEIF"):
        if kind in Image.SAVE:
            exact = {} if kind in ("PNG", "TIFF") else {"quality": 98}
            allowed = {"mean": 0.7, "most": 2.01} if kind in ("PNG", "TIFF") else LOSSY
            yield Case(f"{kind} Adobe RGB", saved(colour, kind, icc_profile=adobe_rgb(), **exact), broad, **allowed)
            yield Case(
                f"{kind} broken profile", saved(colour, kind, icc_profile=b"nonsense", **exact), expected, **LOSSY
            )
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield Case("png sRGB profile", saved(colour, "PNG", icc_profile=srgb), np.rint(expected), most=0)
    data = saved(colour.getchannel(0), "PNG", icc_profile=grey_gamma(1.8))
    dim = srgb_curve((np.rint(expected[..., :1]) / 255) ** (461 / 256))
    yield Case("png grey profile", data, np.repeat(dim, 3, 2), most=2.01)
    clear = saved(whole, "PNG", icc_profile=adobe_rgb())
    yield Case("png alpha Adobe RGB", clear, on_white(broad, opacity), 1, 2.01)
    if "HEIF" in Image.SAVE:
        yield Case("heic", saved(colour, "HEIF", quality=95), expected, **LOSSY)
        yield Case("heic alpha", saved(whole, "HEIF", quality=95), on_white(expected, opacity), 5, 256)


def broken_cases(rng: np.random.Generator, h: int, w: int) -> Iterator[Case]:
    """The second half is zeros or lacks, of formats whose data say so; and whole images that are black below."""
    image = np.clip(scene(rng, 16 * h, 16 * w) + rng.normal(0, 0.05, (16 * h, 16 * w, 3)), 0, 1)
    dark = image.copy()
    dark[4 * h :] = 0
    for name, kind, options, mean in (
        ("jpeg", "JPEG", {}, 9),
        ("jpeg optimised", "JPEG", {"optimize": True}, 9),
        ("jpeg progressive", "JPEG", {"progressive": True}, 9),
        ("jpeg 98", "JPEG", {"quality": 98, "subsampling": 0}, 9),
        ("webp", "WEBP", {}, 9),
        ("webp fast", "WEBP", {"method": 0, "quality": 60}, 12),
        ("webp lossless", "WEBP", {"lossless": True, "method": 1}, 0.5),
        ("png", "PNG", {}, 0.5),
        ("png stored", "PNG", {"compress_level": 0}, 0.5),
        ("gif", "GIF", {}, 25),
        ("avif", "AVIF", {"speed": 9}, 12),
        ("heic", "HEIF", {}, 12),
        ("jpeg 2000", "JPEG2000", {}, 0.5),
        ("tiff lzw", "TIFF", {"compression": "tiff_lzw"}, 0.5),
        ("tiff deflate", "TIFF", {"compression": "tiff_adobe_deflate"}, 0.5),
        ("tiff packbits", "TIFF", {"compression": "packbits"}, 0.5),
        ("tiff jpeg", "TIFF", {"compression": "jpeg"}, 9),
        ("qoi", "QOI", {}, 0.5),
        ("tga run lengths", "TGA", {"compression": "tga_rle"}, 0.5),
    ):
        if kind not in Image.SAVE:
            continue
        data = saved(pixels(image), kind, **options)
        yield Case(f"{name} whole", data, 255 * image, mean, 256)
        for part in (0.5, 0.75, 0.9):
            kept = int(part * len(data))
            yield Case(f"{name} cut {part}", data[:kept], None)
            yield Case(f"{name} zeros {part}", data[:kept] + bytes(len(data) - kept), None)
        hole = len(data) // 3
        amid = data[:hole] + bytes(hole) + data[2 * hole :]
        if name not in ("tga run lengths", "jpeg progressive"):
            yield Case(f"{name} hole", amid, None)
        yield Case(f"{name} black below", saved(pixels(dark), kind, **options), 255 * dark, mean, 256)
        for colour in ("black", "white", "#406080"):
            flat = Image.new("RGB", (20 * w, 20 * h), colour)
            yield Case(f"{name} all {colour}", saved(flat, kind, **options), np.asarray(flat).astype(float), 6, 256)
    fax = saved(Image.fromarray(image[..., 0] > 0.5), "TIFF", compression="group4")
    hole = len(fax) // 3
    yield Case("tiff fax hole", fax[:hole] + bytes(hole) + fax[2 * hole :], None)
    for compression in (5, 8, 32773):
        for last in (False, True):
            data = tiff(quantised(image, 8)[0], 8, 2, compression=compression, last=last)
            kept = len(data) // 2
            yield Case(f"tiff {compression} last {last} zeros", data[:kept] + bytes(len(data) - kept), None)
    for name, data in {
        "bmp": saved(pixels(image), "BMP"),
        "ppm": saved(pixels(image), "PPM"),
        "tga": saved(pixels(image), "TGA"),
    }.items():
        yield Case(f"{name} cut", data[: len(data) // 2], None)


FAMILIES = (png_cases, tiff_cases, other_cases, photo_cases, broken_cases)


def all_cases(seed: int) -> Iterator[Case]:
    """Every family once, in odd sizes that the seed draws."""
    rng = np.random.default_rng(seed)
    for family in FAMILIES:
        yield from family(rng, *rng.integers(5, 12, 2).tolist())


def verdict(case: Case, decode: Callable[[bytes], np.ndarray | str]) -> tuple[str, str]:
    """("right", "refused" or "wrong", and why). decode: gives (h, w, 3), or the reason why it refuses."""
    result = decode(case.content)
    if isinstance(result, str):
        return ("refused" if case.expected is None or case.refusable else "wrong"), result
    if case.expected is None:
        return "wrong", "was decoded and should be refused"
    if result.shape != case.expected.shape:
        return "wrong", f"{result.shape} and not {case.expected.shape}"
    error = abs(result - case.expected)
    told = f"mean error {error.mean():.2f}, largest {error.max():.1f}"
    return ("right" if error.mean() <= case.mean and error.max() <= case.most else "wrong"), told

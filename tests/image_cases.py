"""Image files with known pixels, and files that must be refused.

The expected pixels follow from the specifications and not from Pillow.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from PIL import ExifTags, Image, ImageCms

from fitv2.data.decode import decode
from fitv2.data.formats import UnreadableImage
from image_files import (
    COMPRESSIONS,
    ORIENTATIONS,
    adobe_rgb,
    chunk,
    from_adobe,
    grey,
    grey_gamma,
    on_white,
    packed,
    pixels,
    png,
    quantised,
    saved,
    scene,
    srgb_curve,
    tiff,
)

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


# HEIC can be written only with its extra.
KINDS = [kind for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF") if kind in Image.SAVE]
LOSSY = {"mean": 4.0, "most": 256.0}


def png_cases(rng: np.random.Generator, h: int, w: int) -> Iterator[Case]:
    image, plane, alpha = scene(rng, h, w), scene(rng, h, w, 1)[..., 0], scene(rng, h, w, 1)[..., 0]
    for bits in (1, 2, 4, 8, 16):
        values, shown = quantised(plane, bits)
        yield Case(f"png grey {bits}", png(values, bits, 0), grey(shown))
        yield Case(f"png grey {bits} interlaced", png(values, bits, 0, interlaced=True), grey(shown))
        # Of 16 bits, one that shares its upper byte with others.
        clear = values[h // 2, w // 2]
        chunks = chunk(b"tRNS", struct.pack(">H", clear))
        expected = on_white(grey(shown), values != clear) if bits < 16 else None
        yield Case(f"png grey {bits} tRNS", png(values, bits, 0, chunks), expected)
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
        expected = on_white(255 * shown, (values != clear).any(2)) if bits < 16 else None
        data = png(values, bits, 2, chunk(b"tRNS", struct.pack(">3H", *clear)))
        yield Case(f"png colour {bits} tRNS", data, expected)
    values, shown = quantised(image, 8)
    workflow = chunk(b"zTXt", b"prompt\0\0" + zlib.compress(bytes(3 << 20)))
    yield Case("png text of megabytes", png(values, 8, 2, workflow), 255 * shown)
    primaries = struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)
    for name, other in (
        ("linear", chunk(b"gAMA", struct.pack(">I", 100_000))),
        ("of other primaries", chunk(b"gAMA", struct.pack(">I", 45470)) + chunk(b"cHRM", primaries)),
        ("PQ", chunk(b"cICP", bytes((9, 16, 0, 1)))),
    ):
        yield Case(f"png {name}", png(values, 8, 2, other), None)
    chunks = chunk(b"sRGB", b"\0") + chunk(b"gAMA", struct.pack(">I", 45455))
    yield Case("png sRGB", png(values, 8, 2, chunks), 255 * shown)


def tiff_cases(rng: np.random.Generator, h: int, w: int) -> Iterator[Case]:
    plane, image, alpha = scene(rng, h, w, 1)[..., 0], scene(rng, h, w), scene(rng, h, w, 1)[..., 0]
    for order, compression in product("<>", COMPRESSIONS):
        name, common = f"tiff {order}{compression}", {"order": order, "compression": compression}
        for bits, photometric, reverse in product((1, 2, 4, 8, 12, 16), (0, 1), (False, True)):
            values, shown = quantised(plane, bits)
            data = tiff(values if photometric else 2**bits - 1 - values, bits, photometric, reverse=reverse, **common)
            told = f"{name} {bits} photometric {photometric} reverse {reverse}"
            plain = bits <= 8 or (bits == 16 and photometric == 1)
            yield Case(told, data, grey(shown) if plain else None, refusable=reverse)
        for bits, planes in product((8, 16), (False, True)):
            values, shown = quantised(image, bits)
            levels, opacity = quantised(alpha, bits)
            whole, told = np.dstack([values, levels]), f"{name} {bits} planes {planes}"
            ink, paper = quantised(scene(rng, h, w, 4), bits)
            faded = np.dstack([np.rint(values * opacity[..., None]).astype(np.int64), levels])
            inked = 255 * (1 - paper[..., :3]) * (1 - paper[..., 3:])
            clear = on_white(255 * shown, opacity)
            for kind, numbers, photometric, extra, expected, options in (
                ("colour", values, 2, None, 255 * shown, {}),
                ("alpha", whole, 2, 2, clear, {"most": 2.01}),
                ("unspecified", whole, 2, 0, 255 * shown, {"refusable": True}),
                ("premultiplied", faded, 2, 1, clear, {"mean": 1, "most": 3.01, "refusable": True}),
                ("cmyk", ink, 5, None, inked if bits == 8 else None, {"most": 3.01}),
            ):
                tags = {} if extra is None else {338: ("H", (extra,))}
                data = tiff(numbers, bits, photometric, planes=planes, tags=tags, **common)
                yield Case(f"{told} {kind}", data, None if planes else expected, **options)
            data = tiff(whole[..., 2:], bits, 1, tags={338: ("H", (2,))}, **common)
            expected = on_white(grey(shown[..., 2]), opacity) if bits == 8 else None
            yield Case(f"{told} grey alpha", data, expected, most=2.01)
        for bits in (1, 2, 4, 8):
            indices = quantised(plane, bits)[0]
            palette = rng.integers(0, 256, (2**bits, 3))
            for factor, expected in ((257, palette[indices]), (1, None)):
                tags = {320: ("H", tuple((factor * palette).T.ravel().tolist()))}
                yield Case(f"{name} palette {bits} {factor}", tiff(indices, bits, 3, tags=tags, **common), expected)
    values, few = quantised(plane, 16)[0], quantised(plane, 12)[0]
    eights = quantised(image, 8)[0]
    ends = {340: ("H", (0,)), 341: ("H", (65535,))}
    yield Case("tiff named white", tiff(values, 16, 1, tags=ends), grey(plane))
    yuv = np.asarray(Image.fromarray(eights.astype(np.uint8)).convert("YCbCr")).astype(np.int64)
    for name, data in {
        "12 bits in 16": tiff(few, 16, 1, tags={341: ("H", (4095,))}),
        "float": saved(Image.fromarray(plane.astype(np.float32)), "TIFF"),
        "signed 16": tiff(few, 16, 1, tags={339: ("H", (2,))}),
        "32 full": tiff(quantised(plane, 32)[0], 32, 1),
        "no photometric": tiff(values, 16, None),
        "thumbnail of a camera": tiff(eights, 8, 2, tags={254: ("I", (1,))}),
        "DNG": tiff(eights, 8, 2, tags={50706: ("B", (1, 4, 0, 0))}),
        "lab": tiff(eights, 8, 8),
        "ycbcr": tiff(yuv, 8, 6, tags={530: ("H", (1, 1))}),
        "jpeg": saved(pixels(image), "TIFF", compression="jpeg"),
        "fax": saved(Image.fromarray(plane > 0.5), "TIFF", compression="group4"),
        "strips beyond the end": tiff(values, 16, 1, tags={279: ("I", (10**6,))}),
    }.items():
        yield Case(f"tiff {name}", data, None)


def other_cases(rng: np.random.Generator, h: int, w: int) -> Iterator[Case]:
    image, plane, alpha = scene(rng, h, w), scene(rng, h, w, 1)[..., 0], scene(rng, h, w, 1)[..., 0]
    values, shown = quantised(image, 8)
    levels, opacity = quantised(alpha, 8)
    for most in (1, 15, 100, 255, 256, 1023, 4095, 65535):
        kind = "u1" if most < 256 else ">u2"
        numbers = np.rint(image * most).astype(np.int64)
        size = f"\n{w} {h}\n{most}\n".encode()
        for binary, text, part in (("P6", "P3", numbers), ("P5", "P2", numbers[..., 0])):
            expected = grey(part / most) if part.ndim == 2 else 255 * part / most
            yield Case(f"{binary} {most}", binary.encode() + size + part.astype(kind).tobytes(), expected)
            data = text.encode() + size + " ".join(map(str, part.ravel())).encode()
            yield Case(f"{text} {most}", data, expected)
    bits, black = quantised(plane, 1)
    yield Case("pbm", f"P4\n{w} {h}\n".encode() + packed(1 - bits, 1), grey(black))
    yield Case("pfm", f"Pf\n{w} {h}\n-1\n".encode() + plane.astype("<f4").tobytes(), None)
    colour = Image.fromarray(values.astype(np.uint8))
    bmp = saved(colour, "BMP")
    yield Case("bmp", bmp, 255 * shown)
    yield Case("bmp with a profile", bmp[:70] + b"DEBM" + bmp[74:], None)
    whole = Image.fromarray(np.dstack([values, levels]).astype(np.uint8))
    for kind in ("WEBP", "TIFF"):
        options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        yield Case(f"{kind} colour", saved(colour, kind, **options), 255 * shown)
        yield Case(f"{kind} alpha", saved(whole, kind, **options), on_white(255 * shown, opacity), most=2.01)
    indices = quantised(plane, 4)[0]
    palette = rng.integers(0, 256, (16, 3))
    indexed = Image.fromarray(indices.astype(np.uint8))
    indexed.putpalette(palette.astype(np.uint8).tobytes())
    clear = int(indices[h // 2, w // 2])
    yield Case("gif", saved(indexed, "GIF"), palette[indices])
    yield Case("bmp palette", saved(indexed, "BMP"), palette[indices])
    shown_part = on_white(palette[indices], indices != clear)
    yield Case("gif transparent", saved(indexed, "GIF", transparency=clear), shown_part)
    frames = {"save_all": True, "append_images": [Image.new("RGB", (w, h), "red"), Image.new("RGB", (w, h), "lime")]}
    adaptive = indexed.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)
    yield Case("gif animated", saved(adaptive, "GIF", **frames), palette[indices])
    yield Case("png animated", saved(colour, "PNG", **frames), 255 * shown)
    yield Case("webp animated", saved(colour, "WEBP", lossless=True, **frames), 255 * shown)
    yield Case("tiff pages", saved(colour, "TIFF", **frames), 255 * shown)
    for name, data in {
        "tga": saved(colour, "TGA"),
        "qoi": saved(colour, "QOI"),
        "jpeg 2000": saved(colour, "JPEG2000"),
        "html": b"<html>404 not found</html>",
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
        "jpeg with a video": saved(colour, "JPEG", quality=95) + b"\0\0\0\x18ftypmp42" + bytes(5000),
        "mpo": saved(colour, "MPO", quality=95, save_all=True, append_images=[Image.new("RGB", colour.size, "red")]),
        "webp": saved(colour, "WEBP", quality=95),
        "avif": saved(colour, "AVIF", quality=95, subsampling="4:4:4"),
    }.items():
        yield Case(name, data, expected, **LOSSY)
    yield Case("jpeg grey", saved(colour.getchannel(0), "JPEG", quality=95), grey(image[..., 0]), **LOSSY)
    cmyk = saved(ink, "JPEG", quality=95)
    bare = cmyk[: (at := cmyk.index(b"\xff\xee"))] + cmyk[at + 16 :]
    yield Case("jpeg cmyk without Adobe's marker", bare, None)
    yield Case("jpeg without end", saved(colour, "JPEG", quality=95)[:-2], None)
    wide = re.sub(rb"colrnclx....", b"colrnclx\0\x0c\0\x0d", saved(colour, "AVIF"), flags=re.DOTALL)
    yield Case("avif of other primaries", wide, None)
    opacity = scene(rng, 8 * h, 8 * w, 1)[..., 0]
    whole = Image.merge("RGBA", [*colour.split(), pixels(opacity)])
    for kind in [kind for kind in KINDS if kind in ("WEBP", "AVIF", "HEIF")]:
        yield Case(f"{kind} lossy alpha", saved(whole, kind, quality=95), on_white(expected, opacity), 5, 256)
    for orientation, rotated in ORIENTATIONS.items():
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        for kind in KINDS:
            data = saved(colour, kind, exif=exif, **({"quality": 95} if kind not in ("PNG", "TIFF") else {}))
            # A HEIC is rotated by its container alone; pillow-heif cannot write that.
            upright = expected if kind == "HEIF" else rotated(expected)
            yield Case(f"{kind} orientation {orientation}", data, upright, **LOSSY)
    broad = from_adobe(np.rint(expected) / 255)
    for kind in KINDS:
        exact = {} if kind in ("PNG", "TIFF") else {"quality": 98}
        allowed = {"mean": 0.7, "most": 2.01} if kind in ("PNG", "TIFF") else LOSSY
        yield Case(f"{kind} Adobe RGB", saved(colour, kind, icc_profile=adobe_rgb(), **exact), broad, **allowed)
        yield Case(f"{kind} broken profile", saved(colour, kind, icc_profile=b"nonsense", **exact), expected, **LOSSY)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield Case("png sRGB profile", saved(colour, "PNG", icc_profile=srgb), np.rint(expected), most=0)
    data = saved(colour.getchannel(0), "PNG", icc_profile=grey_gamma(1.8))
    dim = srgb_curve((np.rint(expected[..., :1]) / 255) ** (461 / 256))
    yield Case("png grey profile", data, np.repeat(dim, 3, 2), most=2.01)
    clear = saved(whole, "PNG", icc_profile=adobe_rgb())
    yield Case("png alpha Adobe RGB", clear, on_white(broad, opacity), 1, 2.01)


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
        ("tiff lzw", "TIFF", {"compression": "tiff_lzw"}, 0.5),
        ("tiff deflate", "TIFF", {"compression": "tiff_adobe_deflate"}, 0.5),
        ("tiff packbits", "TIFF", {"compression": "packbits"}, 0.5),
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
        if name != "jpeg progressive":
            yield Case(f"{name} hole", amid, None)
        yield Case(f"{name} black below", saved(pixels(dark), kind, **options), 255 * dark, mean, 256)
        for colour in ("black", "white", "#406080"):
            flat = Image.new("RGB", (20 * w, 20 * h), colour)
            yield Case(f"{name} all {colour}", saved(flat, kind, **options), np.asarray(flat).astype(float), 6, 256)
    for kind in ("BMP", "PPM"):
        data = saved(pixels(image), kind)
        yield Case(f"{kind} cut", data[: len(data) // 2], None)


FAMILIES = (png_cases, tiff_cases, other_cases, photo_cases, broken_cases)


def verdict(case: Case) -> tuple[str, str]:
    """Returns "right", "refused" or "wrong" for the decoding of a case, and why."""
    try:
        result = np.asarray(decode(io.BytesIO(case.content))).astype(float)
    except UnreadableImage as error:
        return ("refused" if case.expected is None or case.refusable else "wrong"), str(error)
    if case.expected is None:
        return "wrong", "was decoded and should be refused"
    if result.shape != case.expected.shape:
        return "wrong", f"{result.shape} and not {case.expected.shape}"
    error = abs(result - case.expected)
    told = f"mean error {error.mean():.2f}, largest {error.max():.1f}"
    return ("right" if error.mean() <= case.mean and error.max() <= case.most else "wrong"), told

"""Decoding of every kind of picture file, damaged ones among them, and the geometry of the token budget."""

import base64
import io
import math
import random

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile

from fitv2.data.images import (
    UnreadableImage,
    centre_crop,
    decode,
    fit_size,
    prepare,
    resize,
    target_size,
    variants,
)
from pictures import claims

# A photograph of an ankle boot, the first test picture of Fashion-MNIST (MIT, Copyright 2017 Zalando SE).
BOOT_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAAAAABXZoBIAAABUElEQVR42t3Su0rDYBgG4Pf78ydpDk0roQcVPAylaJFOoljciu7i4uCiixfg"
    "fQkOTl6Bo5Pgoqhoiya2aWqb/AcHQdA70G98H953+oB/fQYBNhoA+xETw/y+JzUwxd5vhMJ25xgAqocJwH8OivWVXuMscu7D4PFXkwlvnwpF"
    "YtTKY/6NBEYwFE56L06hJ1WaWYH3hQQNpQ2Jg/rLqPzWz7kJ5jW+UINxgsRR+yEsO8OiGueksQsOMGhSCpjbc259O8y0CzmVqeqAG1IBGpWl"
    "5mw2LAemrRbN91yxDyNpcYnaouc5y24+YiVHuOOp9VxyY38mrYcc3TlRMaRI/DrZMfONdDSoArFybMF3jm+eE5YZlFiqSI4y67VViyF1J6M+"
    "v9pc60AkUTSwKGy6gW5f33VtDfE0LBIAf6O5VQk80iq6ubyYAOcLr0kipqd/65k+AWKCff9NOm1OAAAAAElFTkSuQmCC"
)


@pytest.fixture
def grey() -> np.ndarray:
    """(42, 28) uint8: the boot, taller than wide, so that no exchange of axes goes unseen."""
    return np.asarray(Image.open(io.BytesIO(BOOT_PNG)).resize((28, 42), Image.Resampling.BICUBIC))


@pytest.fixture
def colour(grey) -> np.ndarray:
    """(42, 28, 3) uint8: the boot in its own, mirrored and inverted grey as red, green and blue."""
    return np.stack([grey, grey[:, ::-1], 255 - grey], axis=2)


def pixels(path, mode="RGB") -> np.ndarray:
    image = decode(path, mode)
    assert image.mode == mode
    return np.asarray(image).astype(int)


@pytest.mark.parametrize(
    ("extension", "options", "error"),
    [
        ("png", {}, 0),
        ("bmp", {}, 0),
        ("tiff", {}, 0),
        ("ppm", {}, 0),
        ("webp", {"lossless": True}, 0),
        ("webp", {"quality": 95}, 16),  # its colours are always subsampled
        ("jpg", {"quality": 95, "subsampling": 0}, 3),
    ],
)
def test_formats(tmp_path, colour, extension, options, error):
    Image.fromarray(colour).save(tmp_path / f"a.{extension}", **options)
    assert abs(pixels(tmp_path / f"a.{extension}") - colour).mean() <= error
    expected = np.asarray(Image.fromarray(colour).convert("L"))
    assert abs(pixels(tmp_path / f"a.{extension}", "L") - expected).mean() <= error


def test_content_decides_not_the_name(tmp_path, colour):
    Image.fromarray(colour).save(tmp_path / "a.jpg", format="PNG")
    assert (pixels(tmp_path / "a.jpg") == colour).all()


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_modes_that_hold_the_colours_as_they_are(tmp_path, colour, mode):
    image = Image.fromarray(colour).convert(mode)
    image.save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == mode
    assert (pixels(tmp_path / "a.png") == np.asarray(image.convert("RGB"))).all()


def test_first_frame_of_an_animation(tmp_path, grey):
    first, second = Image.fromarray(grey), Image.fromarray(255 - grey)
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert (pixels(tmp_path / "a.gif", "L") == grey).all()


def test_cmyk_jpeg(tmp_path, colour):
    Image.fromarray(colour).convert("CMYK").save(tmp_path / "a.jpg", quality=98, subsampling=0)
    assert Image.open(tmp_path / "a.jpg").mode == "CMYK"
    assert abs(pixels(tmp_path / "a.jpg") - colour).mean() < 4


@pytest.mark.parametrize(("extension", "dtype"), [("png", "<u2"), ("tiff", "<u2"), ("tiff", ">u2"), ("tiff", "<i4")])
def test_16_bit_grey_is_scaled_not_cut_off(tmp_path, extension, dtype):
    values = np.linspace(0, 65535, 40 * 30).astype(dtype).reshape(40, 30)
    path = tmp_path / f"a.{extension}"
    Image.fromarray(values).save(path)
    assert Image.open(path).mode.startswith("I")
    expected = np.round(values / 257).astype(int)
    assert (pixels(path, "L") == expected).all()
    assert (pixels(path) == expected[..., None]).all()
    assert expected[0, 0] == 0 and expected[-1, -1] == 255


@pytest.mark.parametrize(("dtype", "value"), [("<i4", 65536), ("<i4", -1), ("<f4", 0.5)])
def test_pixels_without_a_defined_white(tmp_path, dtype, value):
    Image.fromarray(np.full((4, 4), value, dtype)).save(tmp_path / "a.tiff")
    with pytest.raises(UnreadableImage, match=r"^no defined white: "):
        decode(tmp_path / "a.tiff")


@pytest.mark.parametrize("extension", ["png", "tiff", "webp"])
def test_alpha_on_white(tmp_path, colour, extension):
    alpha = np.broadcast_to(np.linspace(0, 255, 42).astype(np.uint8)[:, None], colour.shape[:2])
    image = Image.fromarray(np.dstack([colour, alpha]))
    image.save(tmp_path / f"a.{extension}", **({"lossless": True, "exact": True} if extension == "webp" else {}))
    expected = 255 + (colour.astype(float) - 255) * (alpha[..., None] / 255)
    assert abs(pixels(tmp_path / f"a.{extension}") - expected).max() <= 1
    assert (pixels(tmp_path / f"a.{extension}")[0] == 255).all()


def test_grey_with_alpha_on_white(tmp_path, grey):
    alpha = np.where(np.arange(28) < 14, 0, 255).astype(np.uint8) + np.zeros_like(grey)
    Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)]).save(tmp_path / "a.png")
    assert (pixels(tmp_path / "a.png", "L") == np.where(alpha == 0, 255, grey)).all()


@pytest.mark.parametrize("extension", ["png", "gif"])
def test_transparent_palette_entry_is_white(tmp_path, extension):
    indices = (np.arange(30 * 20) % 3).astype(np.uint8).reshape(30, 20)
    image = Image.fromarray(indices)
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / f"a.{extension}", transparency=1)
    expected = np.array([[10, 20, 30], [255, 255, 255], [70, 80, 90]])[indices]
    assert (pixels(tmp_path / f"a.{extension}") == expected).all()


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


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("extension", ["png", "tiff", "jpg"])
def test_exif_orientation(tmp_path, colour, orientation, extension):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"quality": 95, "subsampling": 0} if extension == "jpg" else {}
    Image.fromarray(colour).save(tmp_path / f"a.{extension}", exif=exif, **options)
    expected = ORIENTATIONS[orientation](colour)
    result = pixels(tmp_path / f"a.{extension}")
    assert result.shape == expected.shape
    assert abs(result - expected).mean() <= (3 if extension == "jpg" else 0)


def test_malformed_exif_costs_only_the_orientation(tmp_path, colour):
    Image.fromarray(colour).save(tmp_path / "a.png", exif=b"Exif\0\0no such thing")
    assert (pixels(tmp_path / "a.png") == colour).all()


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "gif", "bmp", "tiff", "avif"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_truncated(tmp_path, colour, extension, part, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # As some libraries set it, for all of the process.
    whole = io.BytesIO()
    Image.fromarray(colour).resize((112, 168)).save(whole, {"jpg": "JPEG"}.get(extension, extension))
    path = tmp_path / f"a.{extension}"
    path.write_bytes(whole.getvalue()[: int(part * len(whole.getvalue()))])
    with pytest.raises(UnreadableImage, match=r"^(truncated or damaged: .+|not a picture)$"):
        decode(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "^empty file$"),
        (b"<html>404 not found</html>", "^not a picture$"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EOF\n", "^not a picture$"),
        (claims(0, 10), "^not a picture$"),
        (claims(100_000, 100_000), "^too large: "),
        (claims(16, 16), "^truncated or damaged: "),
    ],
)
def test_bad_files(tmp_path, content, reason):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UnreadableImage, match=reason):
        decode(tmp_path / "a.png")


def test_open_files_are_decoded_as_those_by_path(tmp_path, colour):
    Image.fromarray(colour).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    assert (pixels(io.BytesIO(content)) == pixels(tmp_path / "a.png")).all()
    for bad, reason in ((b"", "^empty file$"), (b"x", "^not a picture$"), (content[:100], "^truncated or damaged: ")):
        with pytest.raises(UnreadableImage, match=reason):
            decode(io.BytesIO(bad))


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "nothing.png", tmp_path):
        with pytest.raises(UnreadableImage, match=r"^cannot be read: "):
            decode(path)


def test_limit_of_pixels_is_exact_and_checked_before_decoding(tmp_path, colour, monkeypatch):
    Image.fromarray(colour).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", max_pixels=42 * 28).size == (28, 42)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("pixels were decoded"))
    with pytest.raises(UnreadableImage, match=r"^too large: 42x28 pixels, limit 1175$"):
        decode(tmp_path / "a.png", max_pixels=42 * 28 - 1)


@pytest.mark.parametrize(
    ("height", "width", "max_tokens", "patch", "expected"),
    [
        (512, 512, 256, 16, (256, 256)),
        (256, 256, 256, 16, (256, 256)),
        (375, 500, 256, 16, (208, 288)),  # 13 x 18 = 234 tokens of 13.86 x 18.48
        (500, 375, 256, 16, (288, 208)),
        (1080, 1920, 256, 16, (192, 336)),
        (1080, 1920, 1024, 16, (384, 672)),
        (100, 80, 256, 16, (96, 80)),  # under the budget: its own size, floored
        (28, 28, 196, 2, (28, 28)),
        (255, 257, 256, 16, (240, 256)),
        (15, 200, 256, 16, (16, 208)),  # a side under one patch: scaled up to it
        (10, 10, 256, 16, (16, 16)),
        (1, 1, 256, 16, (16, 16)),
        (1, 1000, 256, 16, (16, 4096)),  # 1:1000 does not go into 256 tokens
        (1000, 1, 256, 16, (4096, 16)),
        (40, 100_000, 256, 16, (16, 4096)),
        (1000, 1000, 200, 16, (224, 224)),
        (1000, 1000, 1, 16, (16, 16)),
    ],
)
def test_fit_size(height, width, max_tokens, patch, expected):
    assert fit_size(height, width, max_tokens, patch) == expected


def test_fit_size_properties():
    rng = random.Random(0)
    for _ in range(20_000):
        height, width = (int(math.exp(rng.uniform(0, math.log(20_000)))) for _ in range(2))
        max_tokens, patch = rng.choice([1, 7, 64, 200, 256, 1024]), rng.choice([1, 2, 4, 16])
        new_height, new_width = fit_size(height, width, max_tokens, patch)
        rows, columns = new_height // patch, new_width // patch
        assert (rows * patch, columns * patch) == (new_height, new_width)
        assert 1 <= rows * columns <= max_tokens
        assert fit_size(new_height, new_width, max_tokens, patch) == (new_height, new_width)
        assert fit_size(width, height, max_tokens, patch) == (new_width, new_height)
        scale = rng.uniform(0.05, 1)
        assert 1 <= math.prod(fit_size(height, width, max_tokens, patch, scale)) <= max_tokens * patch**2
        aspect = width / height
        if 1 / max_tokens <= aspect <= max_tokens and min(rows, columns) > 1:
            # Flooring takes less than one patch of each side.
            assert columns / (rows + 1) < aspect * (1 + 1e-12) and aspect < (columns + 1) / rows * (1 + 1e-12)


def test_fit_size_is_the_largest_that_fits():
    for height, width in [(375, 500), (1080, 1920), (3000, 401), (999, 1000)]:
        rows, columns = (side // 16 for side in fit_size(height, width, 256, 16))
        ideal = math.sqrt(256 / (height * width))
        assert rows <= height * ideal < rows + 1 and columns <= width * ideal < columns + 1


def test_scale_shrinks_before_flooring():
    assert fit_size(512, 512, 256, 16, scale=0.5) == (128, 128)
    assert fit_size(160, 240, 256, 16, scale=0.5) == (80, 112)
    assert target_size(512, 512, 256, 16, "crop", scale=0.5) == (128, 128)
    assert target_size(512, 512, 256, 16, "crop", scale=0.01) == (16, 16)


@pytest.mark.parametrize("bad", [(0, 5, 256, 16), (5, 0, 256, 16), (5, 5, 0, 16), (5, 5, 256, 0)])
def test_fit_size_of_nothing(bad):
    with pytest.raises(ValueError, match="cannot fit"):
        fit_size(*bad)


def test_variants():
    assert variants(257, 300, 256, 16, "mixed") == ("resize", "crop")
    assert variants(256, 300, 256, 16, "mixed") == ("resize",)
    assert variants(3000, 200, 256, 16, "mixed") == ("resize",)
    assert variants(3000, 3000, 256, 16, "resize") == ("resize",)
    assert variants(20, 20, 256, 16, "crop") == ("crop",)
    with pytest.raises(ValueError, match="not 'bucket'"):
        variants(20, 20, 256, 16, "bucket")


@pytest.mark.parametrize("size", [(28, 42), (300, 200), (64, 64), (131, 517), (1, 1000), (1000, 1)])
@pytest.mark.parametrize("variant", ["resize", "crop"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_prepare(colour, size, variant, mode):
    image = Image.fromarray(colour).convert(mode).resize(size)
    result = prepare(image, 64, 8, variant)
    assert result.mode == mode
    assert (result.height, result.width) == target_size(image.height, image.width, 64, 8, variant)
    assert variant == "resize" or result.size == (64, 64)


def test_resize_is_antialiased():
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (64, 32)))
    assert abs(np.asarray(resize(stripes, (16, 16))).astype(int) - 127.5).max() < 10  # the borders ring


@pytest.mark.parametrize("size", [(64, 64), (97, 201), (400, 131), (515, 515), (40, 30), (33, 1000)])
def test_centre_crop_is_adm(colour, size):
    image = Image.fromarray(colour).resize(size, Image.Resampling.BICUBIC)
    expected = image
    while min(expected.size) >= 128:
        expected = expected.resize(tuple(n // 2 for n in expected.size), Image.Resampling.BOX)
    scaled = tuple(round(n * (64 / min(expected.size))) for n in expected.size)
    expected = np.asarray(expected.resize(scaled, Image.Resampling.BICUBIC)).astype(int)
    top, left = (expected.shape[0] - 64) // 2, (expected.shape[1] - 64) // 2
    assert abs(np.asarray(centre_crop(image, 64)) - expected[top : top + 64, left : left + 64]).max() <= 1


def test_centre_crop_of_a_long_strip_needs_no_memory():
    strip = Image.new("RGB", (60_000, 1), "red")  # scaled as a whole it would take 46 GB
    assert (np.asarray(centre_crop(strip, 512)) == [255, 0, 0]).all()

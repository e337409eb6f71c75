"""Decoding of every kind of image file, damaged ones among them, to known pixels."""

import io
import struct
import sys

import numpy as np
import pytest
from PIL import Image, ImageFile

from fitv2.data.decode import decode
from fitv2.data.formats import UnreadableImage
from image_cases import FAMILIES, verdict
from image_files import adobe_rgb, from_adobe, saved, scene
from image_folders import claims


@pytest.fixture
def colour() -> np.ndarray:
    """(42, 28, 3) uint8, different in every direction, with details as fine as a pixel."""
    rng = np.random.default_rng(0)
    return np.rint(255 * np.clip(scene(rng, 42, 28) + rng.normal(0, 0.1, (42, 28, 3)), 0, 1)).astype(np.uint8)


def pixels(path, mode="RGB") -> np.ndarray:
    image = decode(path, mode)
    assert image.mode == mode
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_every_format_mode_and_depth(family, seed):
    """Right within the rounding of the format, or refused where that is allowed: never anything else."""
    rng = np.random.default_rng(seed)
    wrong = {}
    for case in family(rng, *rng.integers(5, 12, 2).tolist()):
        outcome, why = verdict(case)
        if outcome == "wrong":
            wrong[case.name] = why
    assert wrong == {}


def test_heic_without_its_extra_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    with pytest.raises(UnreadableImage, match=r"fitv2\[heif\]"):
        decode(tmp_path / "a.jpg")


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_grey_models_see_the_same_colours(colour, mode):
    """A profile is applied before colours become grey."""
    data = saved(Image.fromarray(colour), "PNG", icc_profile=adobe_rgb())
    expected = Image.fromarray(np.rint(from_adobe(colour / 255)).astype(np.uint8)).convert(mode)
    assert abs(pixels(io.BytesIO(data), mode) - np.asarray(expected).astype(int)).max() <= 2


def test_a_broken_profile_is_named_once_and_ignored(colour, caplog):
    data = saved(Image.fromarray(colour), "PNG", icc_profile=b"broken" * 7)
    for _ in range(2):
        assert (pixels(io.BytesIO(data)) == colour).all()
    assert caplog.text.count("is ignored") == 1


def test_half_images_are_refused_even_if_another_library_accepts_them(colour, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for kind in ("GIF", "PPM", "PNG"):
        data = saved(Image.fromarray(colour), kind)
        decode(io.BytesIO(data))
        with pytest.raises(UnreadableImage):
            decode(io.BytesIO(data[: len(data) // 2]))


def test_damage_to_a_tiff_is_reported_by_the_error_alone(colour, capfd):
    """libtiff itself would also print a line."""
    data = bytearray(saved(Image.fromarray(colour), "TIFF", compression="tiff_lzw"))
    data[1000:1040] = b"\xa5" * 40
    with pytest.raises(UnreadableImage, match="truncated or damaged"):
        decode(io.BytesIO(data))
    assert capfd.readouterr().err == ""


def test_an_image_of_nothing_but_transparency_is_refused(tmp_path, colour):
    clear = Image.fromarray(colour)
    clear.putalpha(0)
    with pytest.raises(UnreadableImage, match="transparent everywhere"):
        decode(io.BytesIO(saved(clear, "PNG")))


def test_a_first_frame_that_leaves_a_border_open_is_refused():
    frame = saved(Image.new("P", (4, 4), 0), "GIF")
    with pytest.raises(UnreadableImage, match="border open"):
        decode(io.BytesIO(frame[:6] + struct.pack("<HH", 8, 8) + frame[10:]))


def test_malformed_exif_costs_only_the_orientation(tmp_path, colour):
    Image.fromarray(colour).save(tmp_path / "a.png", exif=b"Exif\0\0no such thing")
    assert (pixels(tmp_path / "a.png") == colour).all()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "^empty file$"),
        (b"<html>404 not found</html>", "^not an image$"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EOF\n", "^not an image$"),
        (claims(0, 10), "^not an image$"),
        (claims(100_000, 100_000), "^too large: "),
        (claims(16, 16), "^truncated or damaged: "),
    ],
)
def test_bad_files(tmp_path, content, reason):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UnreadableImage, match=reason):
        decode(tmp_path / "a.png")


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "nothing.png", tmp_path):
        with pytest.raises(UnreadableImage, match=r"^cannot be read: "):
            decode(path)


def test_limit_of_pixels_is_exact_and_checked_before_decoding(tmp_path, colour, monkeypatch):
    Image.fromarray(colour).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", max_pixels=42 * 28).size == (28, 42)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("pixels were decoded"))
    with pytest.raises(UnreadableImage, match="42x28 pixels, limit 1175"):
        decode(tmp_path / "a.png", max_pixels=42 * 28 - 1)


def test_a_lack_of_memory_is_no_fault_of_the_file(colour, monkeypatch):
    def fail(image, content):
        raise MemoryError

    monkeypatch.setattr("fitv2.data.decode.check_whole", fail)
    with pytest.raises(MemoryError):
        decode(io.BytesIO(saved(Image.fromarray(colour))))

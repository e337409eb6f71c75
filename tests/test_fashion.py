"""The built-in set: whole garments in their own boxes, and packs that are nearly full."""

import gzip
import math

import numpy as np
import pytest
from PIL import Image

from fitv2.data import fashion
from fitv2.data.preprocessing import prepare, resize, target_size, variants


@pytest.fixture(scope="module")
def bundled():
    return fashion.bundled()


def test_bundle_is_ten_thousand_balanced_garments_of_many_shapes(bundled):
    assert len(bundled) == 10_000
    assert np.bincount(bundled.labels).tolist() == [1000] * 10
    sizes = {image.shape for image in bundled.images}
    assert len(sizes) == 19 and (28, 8) in sizes and (8, 28) in sizes
    assert bundled.hw.prod(1).max() == 49 and 30 < bundled.hw.prod(1).mean() < 36
    height, width = bundled.hw.T
    trousers, sneakers = (np.median((height / width)[bundled.labels == label]) for label in (1, 7))
    assert trousers > 1.7 and sneakers < 0.6


def test_trim_keeps_the_whole_garment_and_multiples_of_the_patch():
    image = np.zeros((28, 28), np.uint8)
    image[3:12, 20:27] = 200
    trimmed = fashion.trim(image)
    assert trimmed.shape == (12, 8) and trimmed.sum() == image.sum()
    assert fashion.trim(np.zeros((28, 28), np.uint8)).shape == (28, 28)


def test_random_scales_are_drawn_again_each_epoch_and_the_same_for_the_same_seed():
    scaled = fashion.bundled(min_scale=0.5)
    first, second = scaled.epoch(0, 7), scaled.epoch(1, 7)
    assert np.array_equal(first.hw, scaled.epoch(0, 7).hw) and not np.array_equal(first.hw, second.hw)
    assert (first.hw <= scaled.hw).all() and (first.hw >= 1).all()
    for index in range(0, 10_000, 997):  # Cropped where the rounded sides would stretch them.
        expected = np.asarray(resize(Image.fromarray(scaled.images[index]), tuple(first.hw[index] * 4)))
        assert np.array_equal(((first.load(index)[0] + 1) * 127.5).round().numpy(), expected)


@pytest.mark.parametrize("preprocessing", ["resize", "crop", "mixed"])
@pytest.mark.parametrize("max_tokens", [25, 49, 3])
def test_a_budget_fits_garments_as_it_does_the_images_of_a_folder(bundled, max_tokens, preprocessing):
    """Each by one of its variants, to the last pixel."""
    fitted = fashion.bundled(max_tokens=max_tokens, preprocessing=preprocessing)
    view = fitted.epoch(3, 7)
    drawn = set()
    for index in range(0, 10_000, 97):
        image, size = bundled.images[index], tuple(view.hw[index] * 4)
        possible = {
            variant: target_size(*image.shape, max_tokens, 4, variant)
            for variant in variants(*image.shape, max_tokens, 4, preprocessing)
        }
        variant = "crop" if view.variant[index] or preprocessing == "crop" else "resize"
        drawn.add((len(possible), variant))
        assert size == possible[variant]
        expected = np.asarray(prepare(Image.fromarray(image), max_tokens, 4, variant))
        assert np.array_equal(((view.load(index)[0] + 1) * 127.5).round().numpy(), expected)
    assert view.hw.prod(1).max() <= max_tokens
    if preprocessing == "crop":
        assert {tuple(size) for size in view.hw.tolist()} == {(math.isqrt(max_tokens),) * 2}
    if (preprocessing, max_tokens) == ("mixed", 25):
        assert drawn == {(1, "resize"), (2, "resize"), (2, "crop")}


def test_random_scales_are_of_whole_garments():
    for settings in ({"max_tokens": 25}, {"preprocessing": "crop"}):
        with pytest.raises(ValueError, match=r"min_scale=0\.5"):
            fashion.bundled(0.5, **settings)


def test_missing_and_altered_upstream_files_are_reported(tmp_path):
    with pytest.raises(ValueError, match="dataset-fashion-mnist"):
        fashion.full("train", tmp_path)
    for name in fashion.SHA256:
        (tmp_path / name).write_bytes(gzip.compress(b"something else"))
    with pytest.raises(ValueError, match="damaged or another file"):
        fashion.full("test", tmp_path)

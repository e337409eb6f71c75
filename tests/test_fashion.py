"""The built-in set: whole garments in their own boxes, and packs that are nearly full."""

import gzip

import numpy as np
import pytest

from fitv2.data import fashion


@pytest.fixture(scope="module")
def bundled():
    return fashion.bundled()


def test_bundle_is_ten_thousand_balanced_garments_of_many_shapes(bundled):
    assert len(bundled) == 10_000
    assert np.bincount(bundled.labels).tolist() == [1000] * 10
    sizes = {picture.shape for picture in bundled.pictures}
    assert len(sizes) == 19 and (28, 8) in sizes and (8, 28) in sizes
    assert bundled.hw.prod(1).max() == 49 and 30 < bundled.hw.prod(1).mean() < 36


def test_trousers_are_tall_and_shoes_are_wide(bundled):
    height, width = bundled.hw.T
    aspect = {label: np.median((height / width)[bundled.labels == label]) for label in (1, 7)}
    assert aspect[1] > 1.7 and aspect[7] < 0.6


def test_trim_keeps_the_whole_garment_and_multiples_of_the_patch():
    image = np.zeros((28, 28), np.uint8)
    image[3:12, 20:27] = 200
    trimmed = fashion.trim(image)
    assert trimmed.shape == (12, 8) and trimmed.sum() == image.sum()
    assert fashion.trim(np.zeros((28, 28), np.uint8)).shape == (28, 28)


def test_latents_are_in_range_and_of_the_promised_size(bundled):
    view = bundled.epoch(0, 0)
    for index in (0, 77, 9999):
        latent = view.latent(index)
        assert latent.shape == (1, *(view.hw[index] * 4)) and latent.min() >= -1 and latent.max() <= 1
        assert np.array_equal(((latent[0] + 1) * 127.5).round().numpy(), bundled.pictures[index])


def test_random_scales_are_drawn_anew_each_epoch_and_the_same_for_the_same_seed():
    scaled = fashion.bundled(min_scale=0.5)
    first, second = scaled.epoch(0, 7), scaled.epoch(1, 7)
    assert np.array_equal(first.hw, scaled.epoch(0, 7).hw) and not np.array_equal(first.hw, second.hw)
    assert (first.hw <= scaled.hw).all() and (first.hw >= 1).all()
    assert first.latent(5).shape == (1, *(first.hw[5] * 4))


def test_missing_and_altered_upstream_files_are_told(tmp_path):
    with pytest.raises(ValueError, match="install the Debian package dataset-fashion-mnist"):
        fashion.full("train", tmp_path)
    for name in fashion.SHA256:
        (tmp_path / name).write_bytes(gzip.compress(b"something else"))
    with pytest.raises(ValueError, match="damaged or another file"):
        fashion.full("test", tmp_path)

"""The geometry of the token budget: sizes, crops, and what is refused."""

import math

import numpy as np
import pytest
from PIL import Image

from fitv2.data.fashion import bundled
from fitv2.data.preprocessing import (
    MAX_STRETCH,
    all_variants,
    centre_crop,
    cropped_share,
    fit_size,
    prepare,
    resize,
    target_size,
    variant_sizes,
    variants,
    why_unfit,
)
from fitv2.errors import UserError


@pytest.fixture
def colour() -> np.ndarray:
    """(42, 28, 3) uint8: a garment in its own, mirrored and inverted grey as red, green and blue."""
    grey = np.asarray(Image.fromarray(bundled().images[0]).resize((28, 42), Image.Resampling.BICUBIC))
    return np.stack([grey, grey[:, ::-1], 255 - grey], axis=2)


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


@pytest.mark.parametrize("max_tokens", [1, 7, 64, 200, 256, 1024])
@pytest.mark.parametrize("patch", [1, 2, 4, 16])
def test_fit_size_properties(max_tokens, patch):
    rng = np.random.default_rng(max_tokens * patch)
    height, width = np.exp(rng.uniform(0, math.log(20_000), (2, 1000))).astype(int)
    new = new_height, new_width = fit_size(height, width, max_tokens, patch)
    rows, columns = new_height // patch, new_width // patch
    assert (rows * patch == new_height).all() and (columns * patch == new_width).all()
    assert (rows * columns >= 1).all() and (rows * columns <= max_tokens).all()
    assert np.array_equal(fit_size(*new, max_tokens, patch), new)
    assert np.array_equal(fit_size(width, height, max_tokens, patch), new[::-1])
    small = np.multiply(*fit_size(height, width, max_tokens, patch, rng.uniform(0.05, 1, 1000)))
    assert (small >= 1).all() and (small <= max_tokens * patch**2).all()
    # Flooring takes less than one patch of each side.
    aspect = width / height
    usual = (aspect >= 1 / max_tokens) & (aspect <= max_tokens) & (np.minimum(rows, columns) > 1)
    assert (columns / (rows + 1) < aspect * (1 + 1e-12))[usual].all()
    assert (aspect < (columns + 1) / rows * (1 + 1e-12))[usual].all()
    for i in range(100):
        assert fit_size(int(height[i]), int(width[i]), max_tokens, patch) == (new_height[i], new_width[i])


@pytest.mark.parametrize("preprocessing", ["resize", "crop", "mixed"])
def test_sizes_of_variants_are_those_of_each_image(preprocessing):
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(0, math.log(500), (500, 2))).astype(int)
    found, possible = variant_sizes(sizes, 100, 8, preprocessing)
    for (height, width), of_image, number in zip(sizes.tolist(), found.tolist(), possible, strict=True):
        names = variants(height, width, 100, 8, preprocessing)
        assert len(names) == number
        for size, name in zip(of_image, names, strict=False):
            assert tuple(size) == target_size(height, width, 100, 8, name)


def test_scale_shrinks_before_flooring():
    assert fit_size(512, 512, 256, 16, scale=0.5) == (128, 128)
    assert fit_size(160, 240, 256, 16, scale=0.5) == (80, 112)
    assert target_size(512, 512, 256, 16, "crop", scale=0.5) == (128, 128)
    assert target_size(512, 512, 256, 16, "crop", scale=0.01) == (16, 16)


def test_variants():
    assert variants(257, 300, 256, 16, "mixed") == ("resize", "crop")
    assert variants(256, 300, 256, 16, "mixed") == ("resize",)
    assert variants(3000, 200, 256, 16, "mixed") == ("resize",)
    assert variants(3000, 3000, 256, 16, "resize") == ("resize",)
    assert variants(20, 20, 256, 16, "crop") == ("crop",)


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


@pytest.mark.parametrize("size", [(32, 64), (750, 1200), (100, 101), (16, 90), (1, 2000), (500, 20), (33, 1000)])
def test_nothing_is_stretched_beyond_the_bound(size):
    """A disc stays one: what it covers of the result's height and width."""
    height, width = size
    new = fit_size(height, width, 16, 8)
    y, x = np.mgrid[:height, :width]
    ramps = Image.fromarray(np.stack([255 * y / height, 255 * x / width, 0 * x], -1).astype(np.uint8))
    result = np.asarray(resize(ramps, new)).astype(float)
    kept = 1 - cropped_share(height, width, new)
    scales = new[0] / height, new[1] / width
    stretch = max(scales) / min(scales)
    assert kept == 1 if stretch <= 1 + MAX_STRETCH else kept == pytest.approx(1 / stretch)
    if min(size) > 30:  # Both ramps rise by what is kept of each side.
        rises = [result[-1].mean(0)[0] - result[0].mean(0)[0], result[:, -1].mean(0)[1] - result[:, 0].mean(0)[1]]
        shown = [rise / 255 * n / (n - 1) for rise, n in zip(rises, new, strict=True)]
        aspect = (shown[0] * height / new[0]) / (shown[1] * width / new[1])
        assert 1 / 1.1 < aspect < 1.1
    assert result.shape[:2] == new


@pytest.mark.parametrize(
    ("size", "preprocessing", "reason"),
    [
        ((1, 1), "resize", "too small"),
        ((7, 7), "crop", "too small"),
        ((1, 2000), "mixed", "too narrow"),
        ((7, 100), "crop", "too narrow"),
        ((8, 8 * 17), "resize", "too narrow"),
        ((8, 8 * 17), "crop", None),
        ((8, 8 * 16), "resize", None),
        ((8, 8), "mixed", None),
    ],
)
def test_what_would_be_enlarged_to_a_patch_is_refused(size, preprocessing, reason):
    told = why_unfit(*size, 16, 8, preprocessing)
    assert told is None if reason is None else told.startswith(f"{reason}: {size[0]}x{size[1]}")


def test_further_budgets_are_variants_of_their_own():
    sizes = np.array([[96, 96], [40, 200], [16, 24]])
    hw, possible, names = all_variants(sizes, 144, 8, "resize", (36, 9))
    assert possible.tolist() == [3, 3, 3] and names == ("resize",) * 3
    for column, budget in enumerate((144, 36, 9)):
        alone = variant_sizes(sizes, budget, 8, "resize")[0][:, 0]
        assert (hw[:, column] == alone).all() and (hw[:, column].prod(1) <= budget * 64).all()
    assert (hw[2, 0] == hw[2, 2]).all()  # A small image is the same under every budget.
    for wrong in ((144,), (200, 36), (0,)):
        with pytest.raises(UserError, match="further_tokens"):
            all_variants(sizes, 144, 8, "resize", wrong)
    with pytest.raises(UserError, match="resize"):
        all_variants(sizes, 144, 8, "mixed", (36,))

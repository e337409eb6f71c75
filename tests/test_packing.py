"""Packs: every image once, hardly a gap, the same for everybody, and a million images in seconds."""

import time

import numpy as np
import pytest

from fitv2.data.fashion import bundled
from fitv2.data.packing import packing_efficiency, plan_packs
from fitv2.data.stand_in import IMAGES, ImageNetLike


@pytest.mark.parametrize("budget", [1024, 4096, 8192])
def test_packs_hold_every_image_once_and_99_percent_real_tokens(budget):
    lengths = bundled().hw.prod(1)
    packs = plan_packs(lengths, budget, seed=3, epoch=1)
    assert sorted(np.concatenate(packs).tolist()) == list(range(len(lengths)))
    assert max(lengths[pack].sum() for pack in packs) <= budget
    assert packing_efficiency(lengths, packs, budget) >= 0.99
    again, other = plan_packs(lengths, budget, 3, 1), plan_packs(lengths, budget, 3, 2)
    assert all(np.array_equal(a, b) for a, b in zip(packs, again, strict=True))
    assert not np.array_equal(packs[0], other[0])


@pytest.mark.parametrize(("max_tokens", "budget"), [(256, 4096), (1024, 9728)])
def test_a_million_images_are_planned_in_seconds_with_99_percent_real_tokens(max_tokens, budget):
    """Sizes as `fitv2.data.stand_in` draws them; `test_dataset` plans packs of 7680."""
    lengths = ImageNetLike(max_tokens).epoch(0, 0).hw.prod(1)
    assert len(lengths) == IMAGES == 1_281_167
    start = time.process_time()
    packs = plan_packs(lengths, budget, 0, 0)
    assert time.process_time() - start < 5
    assert packing_efficiency(lengths, packs, budget) >= 0.99
    assert sum(map(len, packs)) == IMAGES


def test_images_keep_a_shuffled_order_within_a_short_stretch():
    """Best fit may swap neighbours in the order, but no pack gathers images of one length."""
    lengths = ImageNetLike(256, 50_000).epoch(0, 0).hw.prod(1)
    packs = plan_packs(lengths, 7680, 0, 0)
    counts = np.array([len(pack) for pack in list(packs)[:-64]])
    assert counts.std() < 0.1 * counts.mean()
    means = np.array([lengths[pack].mean() for pack in list(packs)[:-64]])
    assert abs(means[: len(means) // 2].mean() - means[len(means) // 2 :].mean()) < 0.02 * means.mean()


def test_an_image_beyond_the_budget_is_refused():
    with pytest.raises(ValueError, match=r"49 tokens .* 48"):
        plan_packs(np.array([10, 49]), 48, 0, 0)

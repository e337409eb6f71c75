"""Packs, and the stream of training steps: the same from wherever it is entered, every image once, hardly a gap."""

import time
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from fitv2.data.fashion import Fashion, bundled
from fitv2.data.folder import ImageFolder
from fitv2.data.loader import DataCursor, PackLoader, StepData
from fitv2.data.packing import packing_efficiency, plan_packs
from fitv2.data.stand_in import IMAGES, ImageNetLike
from fitv2.errors import UserError
from image_folders import save_image
from tiny import garments

NUMBER = 60


def numbered(min_scale: float = 1.0) -> Fashion:
    """Images of many sizes, the i-th grey with the value i and labelled i modulo 10."""
    images = [np.full(hw * 4, i, np.uint8) for i, hw in enumerate(garments(NUMBER).hw)]
    return Fashion(images, np.arange(NUMBER) % 10, min_scale)


def take(loader: PackLoader, steps: int, cursor: DataCursor | None = None) -> list[StepData]:
    stream = loader.steps(cursor or DataCursor())
    taken = list(islice(stream, steps))
    stream.close()
    return taken


def images(batch) -> list[int]:
    """Which of the `numbered` images a batch holds."""
    values = [float(part.mean()) for part in batch.x.split(batch.lengths)]
    return [round((value + 1) * 127.5) for value in values]


def held(steps: list[StepData]) -> list[list[list[int]]]:
    """Images per step and pack."""
    return [[images(batch) for batch, *_ in step.packs] for step in steps]


def assert_same(steps: list[StepData], expected: list[StepData]) -> None:
    for step, other in zip(steps, expected, strict=True):
        assert (step.images, step.after, step.packing_efficiency) == (
            other.images,
            other.after,
            other.packing_efficiency,
        )
        for (batch, labels, _), (other_batch, other_labels, _) in zip(step.packs, other.packs, strict=True):
            assert torch.equal(batch.x, other_batch.x) and torch.equal(batch.hw, other_batch.hw)
            assert torch.equal(labels, other_labels)


@pytest.mark.parametrize("min_scale", [1.0, 0.5])
@pytest.mark.parametrize("batches_per_step", [1, 3])
def test_the_stream_is_the_same_from_any_cursor(min_scale, batches_per_step):
    loader = PackLoader(numbered(min_scale), 200, batches_per_step, seed=3)
    whole = take(loader, 20)
    assert whole[-1].after.epoch >= 2
    for start in range(0, 17, 3):
        fresh = PackLoader(numbered(min_scale), 200, batches_per_step, seed=3, workers=1)
        assert_same(take(fresh, 3, whole[start].after), whole[start + 1 : start + 4])


def test_every_image_comes_once_an_epoch_in_an_order_of_its_own():
    steps = take(PackLoader(numbered(), 200), 40)
    epochs, epoch = [], []
    for step, (packs,) in zip(steps, held(steps), strict=True):
        epoch += packs
        if step.after.pack == 0:
            epochs.append(epoch)
            epoch = []
    assert len(epochs) >= 3
    assert all(sorted(epoch) == list(range(NUMBER)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    assert held(take(PackLoader(numbered(), 200, seed=1), 3)) != held(steps[:3]), "another seed is another order"


def test_labels_stay_with_their_images_and_short_ones_come_first():
    for step in take(PackLoader(numbered(), 200, batches_per_step=2), 5):
        for batch, labels, _ in step.packs:
            assert labels.tolist() == [i % 10 for i in images(batch)]
            assert batch.lengths == sorted(batch.lengths) and sum(batch.lengths) <= 200


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_packs_of_a_step_without_overlap_or_gap(world):
    alone = take(PackLoader(numbered(), 100, batches_per_step=6), 8)
    ranks = [take(PackLoader(numbered(), 100, 6, rank=rank, world=world), 8) for rank in range(world)]
    for number, step in enumerate(alone):
        shared = [rank[number] for rank in ranks]
        assert {(s.images, s.after) for s in shared} == {(step.images, step.after)}
        (packs,) = held([step])
        for rank, own in enumerate(held(shared)):
            assert own == packs[rank::world]
        assert step.images == sum(map(len, packs))


def test_packs_that_processes_cannot_share_evenly():
    with pytest.raises(ValueError, match=r"3 batches .* 2 processes"):
        PackLoader(numbered(), 200, batches_per_step=3, world=2)


def test_a_cursor_beyond_its_epoch_continues_with_the_next_epoch():
    """After a resume with fewer images, or larger packs."""
    loader = PackLoader(numbered(), 200)
    assert_same(take(loader, 2, DataCursor(epoch=4, pack=10_000)), take(loader, 2, DataCursor(epoch=5)))


def test_a_batch_that_is_too_small_for_any_epoch_is_refused_at_once(tmp_path):
    """Epoch 0 may shrink the largest image so far that it fits."""
    save_image(tmp_path / "a.png", 32, 32)
    data = ImageFolder(tmp_path, 64, 4, preprocessing="resize", min_scale=0.1)
    assert data.epoch(0, 1).hw.prod(1).max() < 60
    with pytest.raises(UserError, match="64 tokens"):
        PackLoader(data, 60, seed=1)


def test_an_error_of_an_image_reaches_the_training_loop():
    dataset = numbered()
    dataset.images[7] = "no array"
    with pytest.raises(AttributeError):
        take(PackLoader(dataset, 200), 30)


def test_an_image_that_goes_bad_during_training_is_named_and_left_out(tmp_path, caplog):
    for i in range(4):
        Image.new("RGB", (16, 16), (i, i, i)).save(tmp_path / f"{i}.png")
    loader = PackLoader(ImageFolder(tmp_path, max_tokens=4, patch=8, flip=False), max_tokens_per_batch=16)
    (tmp_path / "2.png").write_text("no longer an image")
    (step,) = take(loader, 1)
    batch, *_ = step.packs[0]
    assert sorted(images(batch)) == [0, 1, 3]
    assert "2.png could be read" in caplog.text


def test_a_pack_without_any_readable_image_counts_for_nothing(tmp_path, caplog):
    Image.new("RGB", (16, 16)).save(tmp_path / "only.png")
    loader, before = (PackLoader(ImageFolder(tmp_path, max_tokens=4, patch=8), 16) for _ in range(2))
    assert not before.is_gone()
    (tmp_path / "only.png").unlink()
    (step,) = take(loader, 1)
    assert (step.readable, step.unreadable) == ([0], 1) and loader.is_gone()
    assert "only.png could be read at the start" in caplog.text


# The plan of packs


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


@pytest.mark.parametrize(("number", "budget"), [(735, 2048), (1000, 512), (60, 1000), (5, 4096)])
def test_a_few_packs_are_about_equally_full(number, budget):
    lengths = np.random.default_rng(number).integers(3, 37, number)
    packs = plan_packs(lengths, budget, seed=0, epoch=0)
    filled = [int(lengths[pack].sum()) for pack in packs]
    assert len(packs) == -(-lengths.sum() // budget) and max(filled) <= budget
    assert min(filled) > 0.75 * max(filled), filled


def test_a_few_packs_differ_from_epoch_to_epoch_though_all_lengths_differ():
    lengths = np.arange(100, 140)
    epochs = [plan_packs(lengths, 1000, seed=0, epoch=epoch) for epoch in range(2)]
    for packs in epochs:
        assert sorted(np.concatenate(packs).tolist()) == list(range(40))
    first, second = ({frozenset(pack.tolist()) for pack in packs} for packs in epochs)
    assert not first & second
    alone = [[int(pack[0]) for pack in plan_packs(lengths, 150, seed=0, epoch=epoch)] for epoch in range(2)]
    assert alone[0] != alone[1] and sorted(alone[0]) == sorted(alone[1]) == list(range(40))


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

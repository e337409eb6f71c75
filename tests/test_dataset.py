"""What all data sets share: an epoch's draws, and prepared data that an earlier version wrote."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fitv2.data import folder as folder_module
from fitv2.data.contents import Contents
from fitv2.data.dataset import Dataset
from fitv2.data.folder import ImageFolder
from fitv2.data.latent_shards import LatentShards
from fitv2.data.listing import Item
from fitv2.data.loader import PackLoader
from fitv2.data.scan import _CACHE_VERSION
from fitv2.data.stand_in import image_sizes

FROZEN = Path(__file__).parent / "data" / "prepared"


@pytest.mark.parametrize("kind", ["pixels", "moments"])
def test_data_prepared_by_version_0_1_gives_the_same_epochs(kind, tmp_path):
    """The folders and the numbers were written by the version before `Epoch`."""
    data = LatentShards(shutil.copytree(FROZEN / kind, tmp_path / kind))
    expected = json.loads((FROZEN / "expected.json").read_text())[kind]
    assert (data.digest(), data.ids, data.shapes(5)) == (
        expected["digest"],
        expected["ids"],
        [[tuple(shape) for shape in of_class] for of_class in expected["shapes"]],
    )
    for epoch in expected["epochs"]:
        view = data.epoch(epoch["epoch"], epoch["seed"])
        assert view.hw.tolist() == epoch["hw"] and view.labels.tolist() == epoch["labels"]
        for index, numbers in enumerate(epoch["latents"]):
            image = view.load(index).double()
            assert [float(image.sum()), float(image[0, 0, 0]), float(image[-1, -1, -1])] == pytest.approx(
                numbers, abs=1e-6
            )


class Sizes(Dataset):
    """Numbers of tokens without images, at scales of 1 to 2; an image is noise."""

    patch_size, channels, num_classes, class_names = 1, 1, 2, ("a", "b")
    drawn = ("variant", "flip", "scale")

    def __init__(self, labels, *variants, flip=True) -> None:
        self.labels, self.variant_hw, self.flip = np.array(labels), np.stack(variants, 1), flip
        self.possible = np.where(self.labels == 0, len(variants), 1)

    def sized(self, variant, scale):
        return np.rint(super().sized(variant, scale) * (1 + scale[:, None])).astype(int)

    def load(self, index, variant, hw, flip, rng):
        return torch.from_numpy(rng().standard_normal((1, *hw), np.float32))


def test_shapes_are_counted_by_class_the_most_frequent_and_then_the_first_one_first():
    data = Sizes([0, 0, 0, 1, 0], np.array([(5, 2), (2, 5), (2, 5), (9, 9), (1, 1)]))
    data.drawn = ()
    assert data.shapes(2) == [[(2, 5, 2), (5, 2, 1)], [(9, 9, 1)]]
    assert data.shapes(5)[0] == [(2, 5, 2), (5, 2, 1), (1, 1, 1)]


def test_the_draws_of_an_epoch_are_fair_and_independent():
    number = 20_000
    sizes = np.full((number, 2), 1000)
    data = Sizes(np.arange(number) % 2, sizes, 3 * sizes)
    view = data.epoch(0, 0)
    assert not view.variant[1::2].any(), "an image has one variant"
    scale = view.hw[::2, 0] / (1000 + 2000 * view.variant[::2])
    draws = np.stack([view.variant[::2], view.flip[::2], scale])
    assert abs(draws[:2].mean(1) - 0.5).max() < 0.02 and abs(scale.mean() - 1.5) < 0.01
    assert abs(np.corrcoef(draws) - np.eye(3)).max() < 0.05
    assert not Sizes([0] * 9, sizes[:9], flip=False).epoch(0, 0).flip.any()


def test_an_epoch_follows_from_seed_and_epoch_and_an_image_is_not_changed_by_later_ones():
    labels, sizes = np.zeros(50, int), np.full((50, 2), 9)
    data, shorter = Sizes(labels, sizes, 2 * sizes), Sizes(labels[:20], sizes[:20], 2 * sizes[:20])
    view, fewer = data.epoch(3, 7), shorter.epoch(3, 7)
    for name in ("variant", "flip", "hw"):
        assert np.array_equal(getattr(view, name)[:20], getattr(fewer, name))
    assert all(torch.equal(view.load(i), fewer.load(i)) for i in range(20))
    for other in ((4, 7), (3, 8), (7, 3)):
        different = data.epoch(*other)
        assert not np.array_equal(view.flip, different.flip) and not np.array_equal(view.hw, different.hw)


def lines_run(call: Callable[[], object]) -> int:
    """The lines of Python that `call()` runs, in all that it calls; each round of a comprehension is one, too.

    A measure of work that no clock and no busy machine changes.
    """
    lines = 0

    def trace(frame, event, _):
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return lines


def test_images_are_planned_without_a_loop_over_each(tmp_path, monkeypatch):
    """From the finished scan to the first plan: 1.28 million images then take two seconds."""
    number = 20_000
    items = [Item(f"{i % 100:03}/{i:07}.jpg", i % 100) for i in range(number)]
    contents = Contents(items, [f"{i:03}" for i in range(100)])
    monkeypatch.setattr(folder_module, "read_contents", lambda *_: contents)
    monkeypatch.setattr(folder_module, "check_all", lambda *_: (image_sizes(number), {}))

    def start():
        data = ImageFolder(tmp_path, 256, 16)
        assert data.first_hw.prod(1).max() <= 256 and len(data.shapes(500)) == 100 and len(data.digest()) == 16
        view, packs, share = PackLoader(data, 7680, seed=3)._plan(0)
        assert share > 0.98 and len(view.hw) == sum(map(len, packs)) == number

    # 17.5: a name, a label and a size are looked at six times in all, and packing takes the others.
    assert lines_run(start) < 20 * number


def test_a_finished_scan_costs_a_look_at_each_file(tmp_path):
    """The files are empty: nothing is decoded."""
    number, images = 5000, {}
    for i, size in enumerate(image_sizes(number).tolist()):
        path = tmp_path / "images" / f"{i % 10:02}" / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        images[path.relative_to(tmp_path / "images").as_posix()] = [0, path.stat().st_mtime_ns, *size]
    cache = tmp_path / "scan.json"
    numbers = [number for row in images.values() for number in row]
    cache.write_text(json.dumps({"version": _CACHE_VERSION, "names": list(images), "numbers": numbers}))
    folders = []
    lines = lines_run(lambda: folders.append(ImageFolder(tmp_path / "images", 256, 16, cache_file=cache)))
    data = folders[0]
    assert len(data) == number and data.sizes.tolist() == [images[name][2:] for name in data.paths]
    # 57: most are in listing the folder. A path object for each file would add a dozen.
    assert lines < 62 * number


def test_prepared_images_start_from_arrays(tmp_path):
    number, out = 20_000, shutil.copytree(FROZEN / "pixels", tmp_path / "out")
    line = json.loads((out / "index.jsonl").read_text().splitlines()[0])
    with (out / "index.jsonl").open("w") as file:
        for i in range(number):
            new = {"id": f"{i % 1000:03}/{i:07}.jpg", "label": i % 2, "shard": f"{i // 1000:05}-0.safetensors"}
            file.write(json.dumps(line | new) + "\n")
    dataset = json.loads((out / "dataset.json").read_text())
    with (out / "index.jsonl").open("rb") as file:
        dataset["index_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    (out / "dataset.json").write_text(json.dumps(dataset))
    started = []
    first, again = (lines_run(lambda: started.append(LatentShards(out))) for _ in range(2))
    assert again < 0.2 * number < number < first, "the lines of the index are read once"
    before, after = started
    assert (after.ids, after.shards) == (before.ids, before.shards) and len(after) == number
    for name in ("labels", "shard", "possible", "variant_hw", "offset", "crc32"):
        assert np.array_equal(getattr(after, name), getattr(before, name)), name

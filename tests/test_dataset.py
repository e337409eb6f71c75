"""What all data sets share: an epoch's draws, and prepared data that an earlier version wrote."""

import hashlib
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fitv2.data import folder as folder_module
from fitv2.data.contents import Contents
from fitv2.data.dataset import Dataset
from fitv2.data.folder import ImageFolder
from fitv2.data.listing import Item
from fitv2.data.loader import PackLoader
from fitv2.data.scan import _CACHE_VERSION
from fitv2.data.shards import LatentShards
from fitv2.data.stand_in import IMAGES, image_sizes

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
            latent = view.latent(index).double()
            assert [float(latent.sum()), float(latent[0, 0, 0]), float(latent[-1, -1, -1])] == pytest.approx(
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
    assert all(torch.equal(view.latent(i), fewer.latent(i)) for i in range(20))
    for other in ((4, 7), (3, 8), (7, 3)):
        different = data.epoch(*other)
        assert not np.array_equal(view.flip, different.flip) and not np.array_equal(view.hw, different.hw)


@pytest.mark.slow
def test_a_million_images_are_planned_without_further_loops_over_each(tmp_path, monkeypatch):
    sizes = image_sizes(IMAGES)
    names = [f"{i % 1000:03}/{i:07}.jpg" for i in range(IMAGES)]
    items = [Item(name, i % 1000) for i, name in enumerate(names)]
    contents = Contents(items, [f"{i:03}" for i in range(1000)])
    started = []

    def scanned(*_):
        started.append(time.process_time())
        return sizes, {}

    monkeypatch.setattr(folder_module, "read_contents", lambda *_: contents)
    monkeypatch.setattr(folder_module, "check_all", scanned)
    data = ImageFolder(tmp_path, 256, 16)
    assert data.first_hw.prod(1).max() <= 256 and len(data.shapes(500)) == 1000 and len(data.digest()) == 16
    loader = PackLoader(data, 7680, seed=3)
    view, packs, share = loader._plan(0)
    took = time.process_time() - started[0]
    assert share > 0.99 and len(view.hw) == sum(map(len, packs)) == IMAGES
    # The start takes 4 to 5 loops (about 2 s), and one more loop over all images adds 2 or more.
    assert took < 7 * loop_over(sizes)


def loop_over(sizes) -> float:
    """The seconds of a loop that creates an array for each image: a unit in which the speed of processors cancels."""
    start = time.process_time()
    for size in sizes:
        np.array(size)
    return time.process_time() - start


@pytest.mark.slow
def test_a_finished_scan_costs_a_look_at_each_file(tmp_path):
    """Of 50 000, in empty files: nothing is decoded."""
    number, images = 50_000, {}
    sizes = image_sizes(number)
    for i, size in enumerate(sizes.tolist()):
        path = tmp_path / "images" / f"{i % 100:02}" / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        images[path.relative_to(tmp_path / "images").as_posix()] = [0, path.stat().st_mtime_ns, *size]
    cache = tmp_path / "scan.json"
    cache.write_text(json.dumps({"version": _CACHE_VERSION, "images": images}))
    start = time.process_time()
    data = ImageFolder(tmp_path / "images", 256, 16, cache_file=cache)
    took = time.process_time() - start
    assert len(data) == number and data.sizes.tolist() == [images[name][2:] for name in data.paths]
    # 85 to 95 loops (0.6 s): listing, the file's time and the cache take a third each. With a path object for
    # each file it was 200.
    assert took < 150 * loop_over(sizes)


@pytest.mark.slow
def test_a_million_prepared_images_start_from_arrays(tmp_path):
    out = shutil.copytree(FROZEN / "pixels", tmp_path / "out")
    line = json.loads((out / "index.jsonl").read_text().splitlines()[0])
    with (out / "index.jsonl").open("w") as file:
        for i in range(IMAGES):
            new = {"id": f"{i % 1000:03}/{i:07}.jpg", "label": i % 2, "shard": f"{i // 1000:05}-0.safetensors"}
            file.write(json.dumps(line | new) + "\n")
    dataset = json.loads((out / "dataset.json").read_text())
    with (out / "index.jsonl").open("rb") as file:
        dataset["index_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    (out / "dataset.json").write_text(json.dumps(dataset))
    first = LatentShards(out)
    start = time.process_time()
    again = LatentShards(out)
    took = time.process_time() - start
    assert (again.ids, again.shards) == (first.ids, first.shards) and len(again) == IMAGES
    for name in ("labels", "shard", "possible", "variant_hw", "offset", "crc32"):
        assert np.array_equal(getattr(again, name), getattr(first, name)), name
    # 4 to 6 loops (about 1 s), half of it for the hash of the index; reading its lines takes 45.
    assert took < 12 * loop_over(image_sizes(IMAGES))

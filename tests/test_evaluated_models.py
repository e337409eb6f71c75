"""Images that models make for an evaluation: they depend on nothing but their settings, and nothing is made twice."""

import logging
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from evaluations import SHAPES, Silent, contents
from fitv2.autoencoder import KLAutoencoder, Pixels
from fitv2.checkpoints.model_folder import Pretrained
from fitv2.distributed.ranks import join_processes
from fitv2.evaluation import generation
from fitv2.evaluation.models import all_of, make_samples
from fitv2.evaluation.wishes import SizeWish, balanced_wishes
from fitv2.generate import Sampling
from fitv2.locks import locked
from tiny import CLASSES, CONFIG, random_model, tiny_autoencoder


@pytest.fixture(scope="module")
def pretrained() -> Pretrained:
    return Pretrained(random_model(), CLASSES, SHAPES)


def make(pretrained: Pretrained, out: Path, number: int, *sizes: SizeWish, codec=None, **changes):
    sampling = Sampling(steps=1, solver="euler", guidance=1.5)
    codec, about = codec or Pixels(), {"precision": "float32", "seed": 3} | changes
    others = {"name": "tiny", "state": join_processes("cpu"), "progress": Silent}
    return make_samples(
        pretrained, codec, [sampling], sizes, number, settings=all_of(pretrained, codec, **about), out=out, **others
    )


def test_wishes_are_balanced_and_have_seeds_of_their_own(pretrained):
    wishes = balanced_wishes(pretrained, 400, SizeWish(), 7, 1)
    assert [wish.label for wish in wishes[:12]] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert [wish.seed for wish in wishes[:2]] == [7_000_000, 7_000_001]
    own = [wish.size for wish in wishes if wish.label == 0]
    assert own.count((28, 8)) + own.count((24, 12)) == 40 and 20 < own.count((28, 8)) < 40
    assert balanced_wishes(pretrained, 100, SizeWish(), 7, 1) == wishes[:100]
    turned = balanced_wishes(pretrained, 400, SizeWish(scale=1.5, turned=True), 7, 1)
    assert {wish.size for wish in turned if wish.label} == {(40, 12)}
    assert {wish.size for wish in balanced_wishes(pretrained, 9, SizeWish((32, 64)), 0, 8)} == {(4, 8)}
    with pytest.raises(ValueError, match="not divisible by the patch of 32"):
        balanced_wishes(pretrained, 9, SizeWish((32, 40)), 0, 8)
    with pytest.raises(ValueError, match="not 1000001"):
        balanced_wishes(pretrained, 1_000_001, SizeWish(), 0, 1)


def test_sizes_of_many_images_of_many_classes_are_drawn_at_once():
    """Of each class only as many as it has images: 50,000 of 1,000 classes once took 3.5 GB and 90 s."""
    rng = np.random.default_rng(0)
    shapes = [[tuple(row) for row in rng.integers(4, 40, (500, 3)).tolist()] for _ in range(1000)]
    config = SimpleNamespace(num_classes=1000, patch_size=2)
    large = SimpleNamespace(model=SimpleNamespace(config=config, null_label=1000), shapes=shapes)
    tracemalloc.start()
    start = time.process_time()
    wishes = balanced_wishes(large, 20_000, SizeWish(), 0, 8)
    seconds, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6 and seconds < 10 and len({wish.size for wish in wishes}) > 100
    assert balanced_wishes(large, 3000, SizeWish(), 0, 8) == wishes[:3000]


def test_models_without_classes_or_shapes(pretrained):
    no_classes = Pretrained(random_model(replace(CONFIG, num_classes=0)), [], [[(8, 8, 1)]])
    assert {(w.label, w.size) for w in balanced_wishes(no_classes, 3, SizeWish(), 0, 1)} == {(0, (8, 8))}
    with pytest.raises(ValueError, match="give --size"):
        balanced_wishes(Pretrained(pretrained.model, CLASSES, []), 3, SizeWish(), 0, 1)


def as_made(samples) -> list[Image.Image]:
    return list(samples.pictures.read(samples.chosen.tolist(), None, lambda image: image))


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """The numbers of all pictures that a model is asked for; shards are of four."""
    numbers, whole = [], generation.generate

    def count(model, wishes, *arguments):
        numbers.extend(wish.seed - 3_000_000 for wish in wishes)
        return whole(model, wishes, *arguments)

    monkeypatch.setattr(generation, "generate", count)
    monkeypatch.setattr(generation, "SHARD", 4)
    return numbers


def test_pictures_do_not_depend_on_interruptions(pretrained, tmp_path, asked, caplog):
    (whole,) = make(pretrained, tmp_path / "whole", 10, SizeWish())
    expected = contents(tmp_path / "whole")
    assert sum(name.endswith(".npz") for name in expected) == 3
    (stopped,) = make(pretrained, tmp_path / "stopped", 10, SizeWish())
    folder = stopped.pictures.folder
    (folder / "00000.npz").write_bytes((folder / "00000.npz").read_bytes()[:-100])
    (folder / "00002.npz").unlink()
    (folder / f".00001.npz.{'0' * 32}").write_bytes(b"what a kill left")
    asked.clear()
    with caplog.at_level(logging.WARNING):
        make(pretrained, tmp_path / "stopped", 10, SizeWish())
    assert asked == [0, 1, 2, 3, 8, 9] and "00000.npz is damaged, and its pictures are made anew" in caplog.text
    assert contents(tmp_path / "stopped") == expected
    read = list(whole.pictures.read([1, 7], "RGB", lambda image: image))
    assert [(image.height, image.width) for image in read] == [whole.pictures.wishes[i].size for i in (1, 7)]


def test_no_picture_is_made_twice_or_thrown_away(pretrained, tmp_path, asked):
    """More pictures go on where fewer ended, within a shard as well; fewer are the first of those that are there."""
    (at_once,) = make(pretrained, tmp_path / "at once", 11, SizeWish())
    asked.clear()
    for number, new in ((6, range(6)), (3, ()), (11, range(6, 11)), (5, ()), (11, ()), (1, ())):
        (samples,) = make(pretrained, tmp_path / "grown", number, SizeWish())
        assert asked == [*new]
        asked.clear()
        made = as_made(samples)
        assert len(made) == number
        for image, expected in zip(made, as_made(at_once), strict=False):
            # Made in other company, sums are rounded otherwise.
            assert np.allclose(np.asarray(image, float), np.asarray(expected, float), atol=1)
        if number == 6:
            first = [image.tobytes() for image in made]
        assert [image.tobytes() for image in made[:6]] == first[:number]
    (of_five, of_six) = (make(pretrained, tmp_path / "grown", number, SizeWish())[0].pictures for number in (5, 6))
    assert of_five.digest != of_six.digest
    assert of_five.digest == make(pretrained, tmp_path / "grown", 5, SizeWish())[0].pictures.digest


def test_two_commands_do_not_make_the_same_pictures(pretrained, tmp_path):
    (samples,) = make(pretrained, tmp_path, 2, SizeWish())
    with locked(samples.pictures.folder, "a test"):
        with pytest.raises(ValueError, match="in use"):
            make(pretrained, tmp_path, 4, SizeWish())
        make(pretrained, tmp_path, 2, SizeWish((8, 8)))
    make(pretrained, tmp_path, 4, SizeWish())


def test_other_settings_have_folders_of_their_own(pretrained, tmp_path):
    folders = set()
    other = Pretrained(random_model(seed=1), CLASSES, SHAPES)
    for model, changes in [(pretrained, {}), (pretrained, {"seed": 4}), (other, {}), (pretrained, {"precision": "b"})]:
        (samples,) = make(model, tmp_path, 2, SizeWish(), **changes)
        folders.add(samples.pictures.folder)
    folders |= {samples.pictures.folder for samples in make(pretrained, tmp_path, 2, SizeWish((8, 8)), SizeWish())}
    assert len(folders) == 5
    (folders.pop() / "settings.json").write_text("{}")
    with pytest.raises(ValueError, match="holds pictures of other settings"):
        make(pretrained, tmp_path, 2, SizeWish((8, 8)), SizeWish())
        for changes in ({"seed": 4}, {"precision": "b"}):
            make(pretrained, tmp_path, 2, SizeWish(), **changes)
        make(other, tmp_path, 2, SizeWish())


def test_a_model_that_makes_no_picture_is_told(tmp_path):
    broken = Pretrained(random_model(), CLASSES, SHAPES)
    torch.nn.init.constant_(broken.model.x_embedder.proj.bias, float("nan"))
    for _ in range(2):  # The folder is free again.
        with pytest.raises(ValueError, match="seed 3000000"):
            make(broken, tmp_path, 2, SizeWish((8, 8)))


def test_latents_are_decoded(tmp_path):
    codec = KLAutoencoder(tiny_autoencoder(), "cpu")
    colour = Pretrained(random_model(replace(CONFIG, in_channels=4, patch_size=2)), CLASSES, SHAPES)
    (samples,) = make(colour, tmp_path, 3, SizeWish((32, 48)), codec=codec)
    images = list(samples.pictures.read([0, 1, 2], None, lambda image: image))
    assert {(image.mode, image.size) for image in images} == {("RGB", (48, 32))}
    assert samples.about["autoencoder_sha256"] == codec.digest()

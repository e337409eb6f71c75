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
from accelerate import PartialState
from PIL import Image

from evaluations import classified, silent
from fitv2.checkpoints.model_folder import Pretrained, load_pretrained
from fitv2.evaluation import generated as module
from fitv2.evaluation.generated import Maker, SizeSpec, balanced_specs, make_samples
from fitv2.images import make_images
from fitv2.images.autoencoder import LatentCodec, Pixels
from fitv2.images.sheets import to_image
from fitv2.sampling.generate import generate
from fitv2.sampling.spec import Sampling
from fitv2.system.locks import locked
from image_folders import contents
from tiny import CLASSES, CONFIG, SHAPES, random_model, tiny_autoencoder


@pytest.fixture(scope="module")
def pretrained() -> Pretrained:
    return Pretrained(random_model(), CLASSES, SHAPES)


def make(pretrained: Pretrained, out: Path, number: int, *sizes: SizeSpec, codec=None, tell=None, **changes):
    settings = {"name": "tiny", "precision": "float32", "seed": 3} | changes
    settings["samplings"] = [Sampling(steps=1, solver="euler", guidance=1.5)]
    maker = Maker(pretrained=pretrained, codec=codec or Pixels(), **settings)
    company = PartialState(cpu=True), silent, tell or (lambda images, seconds: None)
    return make_samples(maker, sizes, number, out, *company)


def test_requests_are_balanced_and_have_the_seeds_of_sample(pretrained):
    specs = balanced_specs(pretrained, 400, SizeSpec(), 7, 1)
    assert [spec.label for spec in specs[:12]] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert [spec.seed for spec in specs[:2]] == [7, 8]
    own = [spec.size for spec in specs if spec.label == 0]
    assert own.count((28, 8)) + own.count((24, 8)) == 40 and 20 < own.count((28, 8)) < 40
    assert balanced_specs(pretrained, 100, SizeSpec(), 7, 1) == specs[:100]
    turned = balanced_specs(pretrained, 400, SizeSpec(scale=1.5, turned=True), 7, 1)
    assert {spec.size for spec in turned if spec.label} == {(40, 12)}
    assert {spec.size for spec in balanced_specs(pretrained, 9, SizeSpec((32, 64)), 0, 8)} == {(4, 8)}
    with pytest.raises(ValueError, match="patch of 32"):
        balanced_specs(pretrained, 9, SizeSpec((32, 40)), 0, 8)


def test_sizes_of_many_images_of_many_classes_are_drawn_at_once():
    """Of each class only as many as it has images: 50,000 of 1,000 classes once took 3.5 GB and 90 s."""
    rng = np.random.default_rng(0)
    shapes = [[tuple(row) for row in rng.integers(4, 40, (500, 3)).tolist()] for _ in range(1000)]
    config = SimpleNamespace(num_classes=1000, patch_size=2)
    large = SimpleNamespace(model=SimpleNamespace(config=config, null_label=1000), shapes=shapes, examples=[])
    tracemalloc.start()
    start = time.process_time()
    specs = balanced_specs(large, 20_000, SizeSpec(), 0, 8)
    seconds, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6 and seconds < 10 and len({spec.size for spec in specs}) > 100
    assert balanced_specs(large, 3000, SizeSpec(), 0, 8) == specs[:3000]


def test_models_without_classes_or_shapes(pretrained):
    no_classes = Pretrained(random_model(replace(CONFIG, num_classes=0)), [], [[(8, 8, 1)]])
    assert {(w.label, w.size) for w in balanced_specs(no_classes, 3, SizeSpec(), 0, 1)} == {(0, (8, 8))}
    with pytest.raises(ValueError, match="give --size"):
        balanced_specs(Pretrained(pretrained.model, CLASSES, []), 3, SizeSpec(), 0, 1)


def as_made(samples) -> list[Image.Image]:
    return list(samples.images.read(samples.chosen.tolist(), "RGB", lambda image: image))


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """The numbers of all images that a model is asked for; shards are of four."""
    numbers = []

    def count(model, specs, *arguments):
        numbers.extend(spec.seed - 3 for spec in specs)
        return generate(model, specs, *arguments)

    monkeypatch.setattr(make_images, "generate", count)
    monkeypatch.setattr(module, "SHARD", 4)
    return numbers


def test_images_do_not_depend_on_interruptions(pretrained, tmp_path, asked, caplog):
    (whole,) = make(pretrained, tmp_path / "whole", 10, SizeSpec())
    expected = contents(tmp_path / "whole")
    assert sum(name.endswith(".npz") for name in expected) == 3
    (stopped,) = make(pretrained, tmp_path / "stopped", 10, SizeSpec())
    folder = stopped.images.folder
    (folder / "00000.npz").write_bytes((folder / "00000.npz").read_bytes()[:-100])
    (folder / "00002.npz").unlink()
    (folder / f".00001.npz.{'0' * 32}").write_bytes(b"what a kill left")
    asked.clear()
    with caplog.at_level(logging.WARNING):
        make(pretrained, tmp_path / "stopped", 10, SizeSpec())
    assert asked == [0, 1, 2, 3, 8, 9] and "00000.npz is damaged" in caplog.text
    assert contents(tmp_path / "stopped") == expected
    read = list(whole.images.read([1, 7], "RGB", lambda image: image))
    assert [(image.height, image.width) for image in read] == [whole.images.specs[i].size for i in (1, 7)]


def test_the_time_is_estimated_before_many_images_are_made(pretrained, tmp_path, asked):
    told = []
    make(pretrained, tmp_path, 3, SizeSpec(), tell=lambda *numbers: told.append(numbers))
    assert told == [] and len(asked) == 3
    make(pretrained, tmp_path, 9, SizeSpec(), tell=lambda *numbers: told.append(numbers))
    ((images, seconds),) = told  # Of whole shards that are missing.
    assert images == 5 and 0 < seconds < 60
    make(pretrained, tmp_path, 9, SizeSpec(), tell=lambda *numbers: told.append(numbers))
    assert len(told) == 1


def test_no_image_is_made_twice_or_thrown_away(pretrained, tmp_path, asked):
    """More images go on where fewer ended, within a shard as well; fewer are the first of those that are there."""
    (at_once,) = make(pretrained, tmp_path / "at once", 11, SizeSpec())
    asked.clear()
    for number, new in ((6, range(6)), (3, ()), (11, range(6, 11)), (5, ()), (11, ()), (1, ())):
        (samples,) = make(pretrained, tmp_path / "grown", number, SizeSpec())
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
    (of_five, of_six) = (make(pretrained, tmp_path / "grown", number, SizeSpec())[0].images for number in (5, 6))
    assert of_five.digest != of_six.digest
    assert of_five.digest == make(pretrained, tmp_path / "grown", 5, SizeSpec())[0].images.digest


def test_two_commands_do_not_make_the_same_images(pretrained, tmp_path):
    (samples,) = make(pretrained, tmp_path, 2, SizeSpec())
    with locked(samples.images.folder, "a test"):
        with pytest.raises(ValueError, match="in use"):
            make(pretrained, tmp_path, 4, SizeSpec())
        make(pretrained, tmp_path, 2, SizeSpec((8, 8)))
    make(pretrained, tmp_path, 4, SizeSpec())


def test_other_settings_have_folders_of_their_own(pretrained, tmp_path):
    folders = set()
    other = Pretrained(random_model(seed=1), CLASSES, SHAPES)
    for model, changes in [(pretrained, {}), (pretrained, {"seed": 4}), (other, {}), (pretrained, {"precision": "b"})]:
        (samples,) = make(model, tmp_path, 2, SizeSpec(), **changes)
        folders.add(samples.images.folder)
    folders |= {samples.images.folder for samples in make(pretrained, tmp_path, 2, SizeSpec((8, 8)), SizeSpec())}
    assert len(folders) == 5
    (folders.pop() / "settings.json").write_text("{}")
    with pytest.raises(ValueError, match="other settings"):
        make(pretrained, tmp_path, 2, SizeSpec((8, 8)), SizeSpec())
        for changes in ({"seed": 4}, {"precision": "b"}):
            make(pretrained, tmp_path, 2, SizeSpec(), **changes)
        make(other, tmp_path, 2, SizeSpec())


def test_a_model_that_makes_no_image_is_told(tmp_path):
    broken = Pretrained(random_model(), CLASSES, SHAPES)
    torch.nn.init.constant_(broken.model.x_embedder.proj.bias, float("nan"))
    for _ in range(2):  # The folder is free again.
        with pytest.raises(ValueError, match="seed 3"):
            make(broken, tmp_path, 2, SizeSpec((8, 8)))


def test_latents_are_decoded(tmp_path):
    codec = LatentCodec(tiny_autoencoder(), "cpu")
    colour = Pretrained(random_model(replace(CONFIG, in_channels=4, patch_size=2)), CLASSES, SHAPES)
    (samples,) = make(colour, tmp_path, 3, SizeSpec((32, 48)), codec=codec)
    images = list(samples.images.read([0, 1, 2], "RGB", lambda image: image))
    assert {(image.mode, image.size) for image in images} == {("RGB", (48, 32))}
    assert samples.about["autoencoder_sha256"] == codec.digest()


def test_the_shipped_model_makes_what_it_is_asked_for():
    """A few steps are enough to tell it from noise and from another class; the model card has the real scores."""
    pretrained = load_pretrained("builtin:fashion")
    specs = balanced_specs(pretrained, 50, SizeSpec(), 3, 1)
    _, classes = classified(map(to_image, generate(pretrained.model, specs, Sampling(steps=8))))
    assert (classes == torch.tensor([spec.label for spec in specs])).float().mean() >= 0.9

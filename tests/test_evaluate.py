"""Evaluations: what is compared with what, that pictures depend on nothing but their settings, stamps, the command."""

import gzip
import hashlib
import inspect
import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

from evaluations import SHAPES, Silent, contents
from fitv2.checkpoints.model_folder import save_pretrained
from fitv2.cli.evaluate import OF_SAMPLES, evaluate
from fitv2.cli.evaluated import is_model
from fitv2.data import fashion
from fitv2.data.fashion import bundled, to_latent
from fitv2.data.images import decode, prepare
from fitv2.errors import UserError
from fitv2.evaluation import generation, references, summary
from fitv2.evaluation import pictures as pictures_module
from fitv2.evaluation.archives import read_pictures, write_pictures
from fitv2.evaluation.classifier import examine, load_classifier
from fitv2.evaluation.features import Features
from fitv2.evaluation.frechet import Statistics, frechet_distance
from fitv2.evaluation.garments import GarmentExtractor
from fitv2.evaluation.pictures import blocks, in_turn, open_pictures
from fitv2.evaluation.protocols import central_square, cover, real_view
from fitv2.evaluation.references import Reference, default_extractor, open_reference
from fitv2.evaluation.results import difference
from fitv2.evaluation.run import Evaluation, given_samples
from fitv2.evaluation.scores import load_reference
from fitv2.evaluation.suite import METRICS
from fitv2.locks import locked
from pictures import good_files, noise, write_files
from tiny import CLASSES, CONFIG, command_line, processes, random_model, tiny_autoencoder

FAST = ("--steps", "1", "--guidance", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_pretrained(folder, CONFIG, random_model().state_dict(), CLASSES, SHAPES, torch.float32)
    return folder


@pytest.fixture(scope="module")
def garments(tmp_path_factory) -> Path:
    """Eight real garments of each class, a folder per class."""
    root, real = tmp_path_factory.mktemp("garments"), bundled()
    for index in in_turn(real.labels, 80):
        path = root / CLASSES[real.labels[index]] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.ascontiguousarray(real.pictures[index])).save(path)
    return root


@pytest.fixture(autouse=True)
def of_this_test_alone(tmp_path, monkeypatch) -> None:
    """What is kept, and no garments that may be installed."""
    monkeypatch.setenv("FITV2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fashion, "DEBIAN_FOLDER", tmp_path / "not installed")


def evaluation(reference: Reference, tmp_path: Path, **changes) -> Evaluation:
    usual = Evaluation(
        reference=reference,
        extractor=GarmentExtractor("cpu"),
        metrics=METRICS,
        protocol=None,
        cache=tmp_path / "cache",
        kept=tmp_path / "kept",
        progress=Silent,
    )
    return replace(usual, **changes)


# What is compared


@pytest.mark.parametrize("size", [(40, 90), (30, 30), (64, 20), (200, 100)])
def test_cover_scales_to_cover_and_cuts_the_centre(size):
    """Within rounding: the scaled picture has whole sides, and its cut whole pixels."""
    rows, columns = np.mgrid[:60, :80]
    image = Image.fromarray((rows * 2 + columns).astype(np.uint8))
    scale = max(size[0] / 60, size[1] / 80)
    whole = image.resize((round(80 * scale), round(60 * scale)), Image.Resampling.BICUBIC)
    left, top = (whole.width - size[1]) // 2, (whole.height - size[0]) // 2
    expected = np.asarray(whole.crop((left, top, left + size[1], top + size[0])), float)
    found = np.asarray(cover(image, size), float)
    assert found.shape == size
    assert np.abs(found - expected).max() <= 3 and abs((found - expected).mean()) < 0.6


def test_central_square():
    image = noise(5, 9)
    assert np.array_equal(np.asarray(central_square(image)), np.asarray(image)[:, 2:7])
    assert np.array_equal(np.asarray(central_square(image.rotate(90, expand=True))).shape, (5, 5, 3))


def test_views_of_real_pictures():
    """Cut and not stretched; central squares as large as the samples', where these have one size."""
    image, wide = noise(30, 60), (20, 50)
    assert real_view(image, "adm-square", wide) is image
    assert np.array_equal(real_view(image, "matched", wide), cover(image, wide))
    assert not np.array_equal(cover(image, wide), image.resize((50, 20), Image.Resampling.BICUBIC))
    assert np.array_equal(real_view(image, "centre", wide), cover(image, (20, 20)))
    assert np.array_equal(real_view(image, "centre", None), central_square(image))


@pytest.fixture
def seen(monkeypatch) -> list[tuple[int, int]]:
    """The sizes of all pictures that come to an extractor."""
    sizes, whole = [], GarmentExtractor.__call__

    def look(self, pictures):
        sizes.extend([tuple(pictures.shape[2:])] * len(pictures))
        return whole(self, pictures)

    monkeypatch.setattr(GarmentExtractor, "__call__", look)
    return sizes


@pytest.mark.parametrize(
    ("protocol", "of_samples", "of_real"),
    [("matched", (20, 8), (20, 8)), ("centre", (8, 8), (8, 8)), ("adm-square", (20, 8), None)],
)
def test_protocols(garments, tmp_path, seen, protocol, of_samples, of_real):
    write_pictures(tmp_path / "samples.npz", [noise(20, 8, seed) for seed in range(9)], 9, (20, 8))
    reference = open_reference(str(garments), tmp_path)
    (samples,) = given_samples(open_pictures(str(tmp_path / "samples.npz"), tmp_path), [], None)
    result = evaluation(reference, tmp_path, protocol=protocol).score(samples)
    assert set(seen[:9]) == {of_samples} and len(seen) == 89
    own = sorted(map(tuple, reference.pictures.sizes.tolist()))
    assert sorted(seen[9:]) == ([of_real] * 80 if of_real else own)
    assert (result.stamp["protocol"], result.stamp["size"], result.stamp["num"]) == (protocol, "20x8", 9)
    assert result.stamp["filter"] == (None if protocol == "adm-square" else "antialiased bicubic")


def test_default_protocols(garments, tmp_path):
    plain, known = open_reference(str(garments), tmp_path), open_reference("fashion:test", tmp_path)
    assert evaluation(plain, tmp_path).protocol_for((8, 8)) == "matched"
    assert evaluation(plain, tmp_path).protocol_for(None) == "adm-square"
    assert evaluation(known, tmp_path).protocol_for((8, 8)) == "adm-square"
    with pytest.raises(ValueError, match="matched needs samples of one size"):
        evaluation(plain, tmp_path, protocol="matched").protocol_for(None)
    with pytest.raises(ValueError, match="fashion:test holds statistics of the extractor garments by adm-square"):
        evaluation(known, tmp_path, protocol="centre").protocol_for((8, 8))


def test_garments_against_the_test_statistics(tmp_path):
    """Three hundred bundled ones, each in its own size: what the distance of their features is, computed apart."""
    real = bundled()
    (samples,) = given_samples(open_pictures("fashion", tmp_path), [], 300)
    result = evaluation(open_reference("fashion:test", tmp_path), tmp_path).score(samples)
    assert np.bincount(real.labels[samples.chosen]).tolist() == [30] * 10
    by_class = samples.chosen[np.argsort(real.labels[samples.chosen], kind="stable")]
    latents = [to_latent(real.pictures[i]) for i in by_class]
    features, classes = examine(load_classifier(), latents)
    expected = frechet_distance(Statistics.of(features), load_reference().statistics)
    assert result.scores["fd"] == pytest.approx(expected, rel=1e-4)
    right = (classes == torch.arange(10).repeat_interleave(30)).double()
    assert result.scores["accuracy"] == pytest.approx(float(right.mean()))
    assert result.scores["accuracy_per_class"] == pytest.approx(
        dict(zip(CLASSES, right.view(10, 30).mean(1).tolist(), strict=True))
    )
    assert result.real["accuracy"] == pytest.approx(0.925, abs=0.01)
    assert "kid" not in result.scores and any("no kid and no pr" in note for note in result.notes)
    assert any("300 pictures is biased upwards" in note for note in result.notes)
    assert result.stamp["reference_statistics"] == "given"


def test_real_garments_against_themselves_and_against_noise(garments, tmp_path):
    reference = open_reference(str(garments), tmp_path)
    (same,) = given_samples(open_pictures(str(garments), tmp_path), [], None)
    result = evaluation(reference, tmp_path).score(same)
    assert result.scores["fd"] == pytest.approx(0, abs=1e-4) and result.scores["sfd"] == pytest.approx(0, abs=1e-4)
    assert (result.scores["precision"], result.scores["recall"], result.scores["coverage"]) == (1, 1, 1)
    assert result.scores["accuracy"] == pytest.approx(result.real["accuracy"]) and result.real["accuracy"] > 0.8
    assert result.scores["classifier_score"] == result.real["classifier_score"]
    low, high = result.real["kid_range"]
    assert low < 0 < high and low < result.real["kid"] < high
    assert 0.5 < result.real["precision"] <= 1 and result.real["drawn"] == len(same.chosen) // 2
    assert any("at equal numbers 40 of 80 samples are compared" in note for note in result.notes)
    # Samples that are real score as real images do, at equal numbers, or better where they are the same ones.
    assert 0 < result.equal["fd"] <= result.real["fd_range"][1]
    write_pictures(tmp_path / "noise.npz", [noise(28, 12, seed) for seed in range(40)], 40, (28, 12))
    (other,) = given_samples(open_pictures(str(tmp_path / "noise.npz"), tmp_path), [], None)
    bad = evaluation(reference, tmp_path).score(other).scores
    assert bad["fd"] > 2 * result.real["fd"] > 0
    assert bad["fd"] > 10 and bad["kid"] > 3 * bad["kid_error"] > 0 and bad["coverage"] < 0.3
    assert "accuracy" not in bad


def test_classes_that_the_extractor_does_not_know_are_those_of_the_nearest(garments, tmp_path):
    """The folders' classes under other names: the neighbours vote."""
    renamed = tmp_path / "renamed"
    for path in garments.rglob("*.png"):
        target = renamed / f"my {path.parent.name}" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (samples,) = given_samples(open_pictures(str(renamed), tmp_path), [], None)
    result = evaluation(open_reference(str(renamed), tmp_path), tmp_path, metrics=("accuracy",)).score(samples)
    assert result.scores["accuracy_by"] == "the 5 nearest real pictures"
    assert 0.4 < result.real["accuracy"] < result.scores["accuracy"]
    assert "drawn" not in result.real  # Nothing was set against others.
    assert list(result.scores["accuracy_per_class"]) == sorted(f"my {name}" for name in CLASSES)


def test_statistics_of_an_adm_archive_are_used(garments, tmp_path, monkeypatch):
    """mu and sigma count where the extractor and the protocol are theirs; arr_0 serves the rest."""
    pictures = [np.asarray(noise(8, 8, seed)) for seed in range(10)]
    statistics = {"mu": np.full(64, 3.0), "sigma": np.eye(64), "mu_s": np.zeros(343), "sigma_s": 2 * np.eye(343)}
    np.savez(tmp_path / "adm.npz", arr_0=np.stack(pictures), **statistics)
    monkeypatch.setattr(references, "STATISTICS", {("mu", "sigma"): 64, ("mu_s", "sigma_s"): 343})
    reference = open_reference(str(tmp_path / "adm.npz"), tmp_path)
    assert reference.known.extractor == "inception"
    reference = replace(reference, known=replace(reference.known, extractor="garments"))
    (samples,) = given_samples(open_pictures(str(garments), tmp_path), [], None)
    found = evaluation(reference, tmp_path).see_samples(samples, "adm-square")
    result = evaluation(reference, tmp_path).score(samples)
    assert result.scores["fd"] == pytest.approx(
        frechet_distance(found.statistics, Statistics(torch.full((64,), 3.0).double(), torch.eye(64).double(), 0))
    )
    assert result.scores["sfd"] == pytest.approx(
        frechet_distance(found.spatial, Statistics(torch.zeros(343).double(), 2 * torch.eye(343).double(), 0))
    )
    assert result.scores["precision"] < 0.5 and result.stamp["reference_count"] == 0
    assert any("does not say of how many" in note for note in result.notes)
    cut = evaluation(reference, tmp_path, protocol="centre").score(samples)
    assert cut.stamp["reference_statistics"] == "of its pictures" and cut.stamp["reference_count"] == 10
    assert cut.scores == evaluation(replace(reference, known=None), tmp_path, protocol="centre").score(samples).scores


def test_smaller_real_pictures_and_too_few_of_them_are_told(garments, tmp_path):
    write_pictures(tmp_path / "large.npz", [noise(56, 56, seed) for seed in range(8)], 8, (56, 56))
    (samples,) = given_samples(open_pictures(str(tmp_path / "large.npz"), tmp_path), [], None)
    notes = " ".join(evaluation(open_reference(str(garments), tmp_path), tmp_path).score(samples).notes)
    assert "80 of 80 real pictures are smaller than 56x56 and were enlarged" in notes
    assert "8 samples are fewer than make 64 features' covariance one of full rank: the kernel distance is" in notes


def test_given_samples_by_size_and_number(tmp_path):
    pictures = open_pictures("fashion", tmp_path)
    tall, wide = given_samples(pictures, [(28, 12), (8, 28)], 40)
    assert (pictures.sizes[tall.chosen] == (28, 12)).all() and (pictures.sizes[wide.chosen] == (8, 28)).all()
    assert len(tall.chosen) == len(wide.chosen) == 40
    with pytest.raises(ValueError, match="fashion has no picture of 5x5; its sizes are"):
        list(given_samples(pictures, [(5, 5)], None))


def test_classes_in_turn():
    labels = np.array([0, 0, 0, 0, 2, 1, 2])
    assert sorted(labels[in_turn(labels, 3)].tolist()) == [0, 1, 2]
    assert labels[in_turn(labels, 5)].tolist() == [0, 0, 2, 1, 2]
    assert in_turn(labels, 99).tolist() == list(range(7))
    assert {*in_turn(labels, 3).tolist()} < {*in_turn(labels, 5).tolist()}


def test_fewer_pictures_are_not_the_first_by_name():
    """Which in many folders are of one kind; of each third there are about as many, and of each class too."""
    chosen = in_turn(np.repeat([0, 1], 3000), 600)
    assert np.histogram(chosen % 3000, 3)[0] == pytest.approx(200, abs=45) and (chosen < 3000).sum() == 300
    assert np.array_equal(chosen, in_turn(np.repeat([0, 1], 3000), 600))


# Sets of pictures


def read_all(pictures, mode: str = "RGB") -> list[np.ndarray]:
    images = pictures.read(list(range(len(pictures.labels))), mode, lambda image: image)
    return [np.asarray(image) for image in images]


def test_prepared_pixels_are_pictures(fitv2, tmp_path):
    """Whole ones, fitted to the budget, without crops and mirror images."""
    root, names = write_files(tmp_path / "root", good_files(9)), sorted(good_files(9))
    settings = ("--max-tokens", 16, "--autoencoder", "pixels", "--patch-size")
    assert fitv2("prepare", root, "--out", "p", *settings, 4)[0] == 0
    pictures = open_pictures(str(tmp_path / "p"), tmp_path)
    assert pictures.class_names == ["cat", "dog"]
    assert pictures.labels.tolist() == [int(name.startswith("dog")) for name in names]
    expected = [np.asarray(prepare(decode(root / name), 16, 4, "resize")) for name in names]
    assert all(map(np.array_equal, read_all(pictures), expected))
    assert pictures.sizes.tolist() == [list(array.shape[:2]) for array in expected]
    assert fitv2("prepare", root, "--out", "q", *settings, 8)[0] == 0
    assert open_pictures(str(tmp_path / "q"), tmp_path).digest != pictures.digest


def test_prepared_pixels_are_a_reference_and_samples(fitv2, garments):
    grey = ("--autoencoder", "pixels", "--patch-size", 4, "--channels", 1)
    assert fitv2("prepare", garments, "--out", "p", "--max-tokens", 49, *grey)[0] == 0
    command = ("--extractor", "garments", "--metrics", "fd,accuracy", "--json")
    for pair in ((garments, "--reference", "p"), ("p", "--reference", garments)):
        (result,) = report(fitv2("evaluate", *pair, *command))["results"]
        assert result["scores"]["fd"] == pytest.approx(0, abs=1e-4)
        assert result["real"]["accuracy"] == pytest.approx(result["scores"]["accuracy"])


def test_latents_are_no_reference(fitv2, garments, tmp_path):
    tiny_autoencoder().save_pretrained(tmp_path / "vae")
    assert fitv2("prepare", garments / "bag", "--out", "p", "--max-tokens", 4, "--autoencoder", "vae")[0] == 0
    (tmp_path / "official/from_16_to_256").mkdir(parents=True)
    for folder in ("p", "official"):
        for command in (("fashion", "--reference", folder), (folder, "--reference", "fashion")):
            said = fitv2("evaluate", *command)[0]
            assert f"{folder} holds latents, which no extractor can see: name the folder of the pictures" in said


@pytest.fixture
def upstream(tmp_path, monkeypatch) -> Path:
    """A folder with files as those of Fashion-MNIST, of thirty garments each."""
    folder, rng = tmp_path / "idx", np.random.default_rng(0)
    folder.mkdir()
    for split in fashion.SPLITS:
        pictures, labels = fashion.split_files(split, folder)
        contents = b"." * 16 + rng.integers(0, 256, (30, 28, 28), np.uint8).tobytes(), b"." * 8 + bytes(range(10)) * 3
        for path, content in zip((pictures, labels), contents, strict=True):
            path.write_bytes(gzip.compress(content))
            monkeypatch.setitem(fashion.SHA256, path.name, hashlib.sha256(content).hexdigest())
    return folder


def test_all_garments_are_pictures_where_their_files_are(upstream, tmp_path, monkeypatch):
    train = open_pictures(f"fashion:train:{upstream}", tmp_path)
    assert len(train.labels) == 30 and train.class_names == CLASSES
    assert all(map(np.array_equal, read_all(train, "L"), fashion.full("train", upstream).pictures))
    with pytest.raises(ValueError, match="fashion:train:FOLDER to evaluate"):
        open_pictures("fashion:train", tmp_path)
    monkeypatch.setattr(fashion, "DEBIAN_FOLDER", upstream)
    test = open_pictures("fashion:test", tmp_path)
    assert open_pictures("fashion:train", tmp_path).digest == train.digest != test.digest
    assert default_extractor("fashion:train", None) == "garments"


def test_the_test_garments_are_one_reference_with_and_without_their_pictures(upstream, garments, tmp_path, monkeypatch):
    """The distance is to the statistics that ship; pictures add what these cannot give, other protocols too."""
    without, given = (open_reference(name, tmp_path) for name in ("fashion:test", f"fashion:test:{upstream}"))
    monkeypatch.setattr(fashion, "DEBIAN_FOLDER", upstream)
    installed = open_reference("fashion:test", tmp_path)
    assert without.digest == given.digest == installed.digest and without.pictures is None
    (samples,) = given_samples(open_pictures(str(garments), tmp_path), [], None)
    first, *more = (evaluation(reference, tmp_path).score(samples) for reference in (without, given, installed))
    assert more[0].scores == more[1].scores
    assert (
        more[0].scores["fd"] == first.scores["fd"] and {"kid", "recall"} <= more[0].scores.keys() - first.scores.keys()
    )
    assert difference({"a": [first], "b": [more[0]]}) is None
    assert evaluation(given, tmp_path, protocol="centre").score(samples).stamp["reference_count"] == 30


def test_classes_that_the_reference_lacks_have_no_real_accuracy(garments, tmp_path):
    """By class there is one; of empty folders nothing is asked."""
    shutil.copytree(garments, tmp_path / "fewer")
    shutil.rmtree(tmp_path / "fewer/bag")
    (tmp_path / "fewer/bag").mkdir()
    whole, fewer = (open_pictures(str(folder), tmp_path) for folder in (garments, tmp_path / "fewer"))
    assert fewer.class_names == sorted({*CLASSES} - {"bag"})
    (samples,) = given_samples(whole, [], None)
    result = evaluation(open_reference(str(tmp_path / "fewer"), tmp_path), tmp_path).score(samples)
    assert "accuracy" not in result.real and len(result.real["accuracy_per_class"]) == 9
    assert any("the reference has no picture of bag" in note for note in result.notes)
    (samples,) = given_samples(fewer, [], None)
    result = evaluation(open_reference(str(garments), tmp_path), tmp_path).score(samples)
    of_class = result.real["accuracy_per_class"]
    assert result.real["accuracy"] == pytest.approx(np.mean([of_class[name] for name in fewer.class_names]))
    assert result.scores["accuracy"] == pytest.approx(result.real["accuracy"])


def test_lossy_samples_are_told(tmp_path):
    for number, kind in enumerate(("png", "jpg", "JPEG")):
        noise(8, 8, number).save(tmp_path / f"{number}.{kind}")
    (samples,) = given_samples(open_pictures(str(tmp_path), tmp_path), [], None)
    assert samples.notes == ("2 of 3 samples are JPEG files, whose losses count as theirs",)


def test_few_large_pictures_wait_at_once(monkeypatch):
    """No more than so many, of no more pixels than so many, unless it is one; and none is left out."""
    monkeypatch.setattr(pictures_module, "AHEAD", 4)
    monkeypatch.setattr(pictures_module, "AHEAD_PIXELS", 100)
    pixels = np.array([10] * 6 + [90, 90, 300, 10, 10])
    assert list(blocks(range(11), pixels)) == [
        range(4),
        range(4, 6),
        range(6, 7),
        range(7, 8),
        range(8, 9),
        range(9, 11),
    ]
    assert [*map(list, blocks([0, 7, 9], pixels))] == [[0, 7], [9]]


# What is kept


def test_pictures_are_looked_at_once(garments, tmp_path, seen, caplog):
    reference = open_reference(str(garments), tmp_path)
    (samples,) = given_samples(open_pictures("fashion", tmp_path), [(28, 8)], 20)
    first = evaluation(reference, tmp_path).score(samples)
    assert len(seen) == 100
    assert evaluation(open_reference(str(garments), tmp_path), tmp_path).score(samples) == first
    assert len(seen) == 100
    (real,) = (tmp_path / "cache").glob("features-*")
    real.write_bytes(real.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING):
        assert evaluation(reference, tmp_path).score(samples) == first
    assert len(seen) == 180 and "is damaged and is made anew" in caplog.text
    assert evaluation(reference, tmp_path, protocol="centre").score(samples).scores != first.scores
    assert len(seen) == 180 + 20 + 80
    (wide,) = given_samples(open_pictures("fashion", tmp_path), [(8, 28)], 20)
    assert evaluation(reference, tmp_path).score(wide).real["classifier_score"] != first.real["classifier_score"]
    assert len(seen) == 280 + 20 + 80


class FirstPixel:
    """An extractor that sees no more of a picture, and knows ten classes by it."""

    digest, mode = "", "L"

    def __call__(self, pictures: torch.Tensor) -> Features:
        assert not torch.backends.cudnn.allow_tf32
        numbers = pictures[:, 0, 0, :1].float()
        return Features(numbers, numbers, torch.eye(10)[numbers[:, 0].long() % 10])


def test_of_very_many_pictures_those_kept_are_of_all_classes(monkeypatch):
    """Evenly spaced ones of classes in turn would not be; statistics are of all."""
    monkeypatch.setattr(summary, "MOST_KEPT", 100)
    images = [Image.fromarray(np.full((1, 1), i, np.uint8)) for i in range(200)]
    found = summary.summarise(FirstPixel(), iter(images), np.arange(200) % 10, lambda count: None)
    assert np.array_equal(found.labels, found.classes) and np.array_equal(found.pooled[:, 0] % 10, found.labels)
    assert np.bincount(found.labels).min() >= 4 and len(found.labels) == 100
    assert int(found.count) == 200 and float(found.pooled_mean) == 99.5


def test_a_changed_reference_is_looked_at_anew(garments, tmp_path, seen):
    folder = tmp_path / "copy"
    shutil.copytree(garments, folder)
    (samples,) = given_samples(open_pictures("fashion", tmp_path), [(28, 8)], 20)
    first = evaluation(open_reference(str(folder), tmp_path), tmp_path).score(samples)
    path = next(folder.rglob("*.png"))
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    second = evaluation(open_reference(str(folder), tmp_path), tmp_path).score(samples)
    assert first.stamp["reference_sha256"] != second.stamp["reference_sha256"]
    assert first.scores["fd"] != second.scores["fd"] and len(seen) == 20 + 80 + 80


def test_archives_are_those_of_numpy(tmp_path):
    images = [noise(6, 4, seed) for seed in range(5)]
    write_pictures(tmp_path / "a.npz", images, 5, (6, 4))
    with np.load(tmp_path / "a.npz") as archive:
        assert archive.files == ["arr_0"]
        assert np.array_equal(archive["arr_0"], np.stack([np.asarray(image) for image in images]))
    np.savez_compressed(tmp_path / "b.npz", arr_0=np.stack([np.asarray(image) for image in images]))
    for name in ("a.npz", "b.npz"):
        chosen = [np.asarray(image) for image in read_pictures(tmp_path / name, [1, 4])]
        assert np.array_equal(chosen, [np.asarray(images[1]), np.asarray(images[4])])


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"arr_0": np.zeros((2, 3, 4, 3))}, "float64"),
        ({"arr_0": np.zeros((2, 3, 4), np.uint8)}, "not uint8 "),
        ({"pictures": np.zeros((2, 3, 4, 3), np.uint8)}, "no archive of pictures"),
        ({"arr_0": np.array([{}])}, "object"),
        (b"PK no archive", "no archive of pictures"),
        (None, "no file"),
    ],
)
def test_archives_of_anything_else_are_refused(tmp_path, arrays, complaint):
    path = tmp_path / "a.npz"
    if isinstance(arrays, dict):
        np.savez(path, **arrays)
    elif arrays:
        path.write_bytes(arrays)
    with pytest.raises(ValueError, match=complaint):
        open_pictures(str(path), tmp_path)


def test_an_archive_without_pictures_or_statistics_is_no_reference(tmp_path):
    np.savez(tmp_path / "a.npz", other=np.zeros(3))
    with pytest.raises(ValueError, match=r"neither pictures \(arr_0\) nor statistics"):
        open_reference(str(tmp_path / "a.npz"), tmp_path)
    (tmp_path / "b.npz").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="no archive of a reference, or damaged"):
        open_reference(str(tmp_path / "b.npz"), tmp_path)


EYE = np.eye(4)
TURNED = np.eye(4) + np.eye(4)[::-1] * 3


@pytest.mark.parametrize(
    ("statistics", "complaint"),
    [
        ({"mu": np.array(["a", "b"]), "sigma": np.eye(2)}, "not real"),
        ({"mu": np.zeros(4), "sigma": np.zeros((4, 5))}, "wanted"),
        ({"mu": np.zeros(8), "sigma": EYE}, "wanted"),
        ({"mu": np.zeros(4), "sigma": EYE - 3 * EYE}, "negative eigenvalues"),
        ({"mu": np.zeros(4), "sigma": TURNED}, "negative eigenvalues"),
        ({"mu": np.zeros(4), "sigma": EYE + np.tri(4)}, "symmetric"),
        ({"mu": np.zeros(4), "sigma": EYE * np.nan}, "not finite"),
        ({"mu": np.full(4, np.inf), "sigma": EYE}, "not finite"),
        ({"mu": np.zeros(4), "sigma": 0 * EYE}, "zero"),
        ({"mu": np.zeros(5), "sigma": np.eye(5)}, "5 features"),
        ({"mu": np.zeros(4)}, "missing"),
        ({"mu": np.zeros(4), "sigma": EYE, "mu_s": np.zeros(3), "sigma_s": -np.eye(3)}, "mu_s and sigma_s"),
        ({"mu_s": np.zeros(3), "sigma_s": np.eye(3)}, "and none of the others"),
    ],
)
def test_statistics_that_are_none_are_refused(tmp_path, monkeypatch, statistics, complaint):
    monkeypatch.setattr(references, "STATISTICS", {("mu", "sigma"): 4, ("mu_s", "sigma_s"): 3})
    np.savez(tmp_path / "a.npz", **statistics)
    with pytest.raises(UserError, match=complaint):
        open_reference(str(tmp_path / "a.npz"), tmp_path)


def test_kept_features_that_are_none_are_made_anew(garments, tmp_path, caplog):
    reference = open_reference(str(garments), tmp_path)
    (samples,) = given_samples(open_pictures("fashion", tmp_path), [(28, 8)], 20)
    first = evaluation(reference, tmp_path).score(samples)
    (kept,) = (tmp_path / "cache").glob("features-*")
    save_file(load_file(kept) | {"pooled_covariance": -torch.eye(64).double()}, kept)
    assert evaluation(reference, tmp_path).score(samples) == first and "made anew" in caplog.text


def test_features_are_kept_by_preprocessing(garments, tmp_path, monkeypatch, seen):
    """Not by weights alone."""
    reference = open_reference(str(garments), tmp_path)
    (samples,) = given_samples(open_pictures("fashion", tmp_path), [(28, 8)], 20)
    evaluation(reference, tmp_path).score(samples)
    monkeypatch.setattr(GarmentExtractor, "resize", "in another way")
    evaluation(reference, tmp_path).score(samples)
    assert len(seen) == 200


# Samples alone are samples


def sampled(folder: Path, *names: str, mark: str | None = None) -> None:
    """As `fitv2 sample` leaves a folder, with a list of those images."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        noise(28, 12, number).save(folder / name)
    about = PngInfo()
    about.add_text("Software", "fitv2 contact sheet")
    noise(90, 90).save(folder / "sheet.png", pnginfo=about if mark else None)


def listed(folder: Path, *names: str) -> None:
    images = [{"file": name, "class": "bag", "label": 8, "size": [28, 12], "seed": 0} for name in names]
    (folder / "samples.json").write_text(json.dumps({"format": 1, "request": {}, "images": images}))


NAMES = [f"bag_28x12_seed{number}.png" for number in range(3)]


@pytest.mark.parametrize(("names", "mark"), [(NAMES, None), (["a.png", "b.png", "c.png"], "marked")])
def test_contact_sheets_are_no_samples(tmp_path, names, mark):
    sampled(tmp_path / "s", *names, mark=mark)
    (tmp_path / "s/.hidden.png").write_bytes((tmp_path / "s/sheet.png").read_bytes())
    pictures = open_pictures(str(tmp_path / "s"), tmp_path)
    assert pictures.paths == names and "sheet.png" in pictures.notes[0]


def test_a_list_of_samples_says_which_images_are_of_the_last_call(tmp_path):
    sampled(tmp_path / "s", *NAMES, "old.png")
    listed(tmp_path / "s", *NAMES)
    pictures = open_pictures(str(tmp_path / "s"), tmp_path)
    assert pictures.paths == NAMES and pictures.class_names == ["bag"] and pictures.sizes.tolist() == [[28, 12]] * 3
    (samples,) = given_samples(pictures, [], None)
    assert "1 other image" in samples.notes[0] and "old.png" in samples.notes[0]
    (tmp_path / "s" / NAMES[1]).unlink()
    with pytest.raises(UserError, match=NAMES[1]):
        open_pictures(str(tmp_path / "s"), tmp_path)
    (tmp_path / "s/samples.json").write_text("{}")
    with pytest.raises(UserError, match="no list of samples"):
        open_pictures(str(tmp_path / "s"), tmp_path)


@pytest.mark.parametrize("out", [(), ("--out", "mine")])
def test_an_evaluation_within_its_reference_does_not_change_it(fitv2, garments, tmp_path, out):
    """Nor do samples there."""
    write_pictures(tmp_path / "s.npz", [noise(28, 12, seed) for seed in range(9)], 9, (28, 12))
    for number, path in enumerate(sorted((garments / "bag").iterdir())):
        shutil.copy(path, tmp_path / f"{number}.png")
    sampled(tmp_path / "outputs", *NAMES)
    command = ("evaluate", "s.npz", "--reference", ".", "--extractor", "garments", "--json", *out)
    found = [report(fitv2(*command))["results"][0] for _ in range(2)]
    assert found[0]["scores"] == found[1]["scores"] and found[1]["stamp"]["reference_count"] == 8
    assert "holds images" in fitv2(*command[:6], "--out", ".")[0]


def test_no_result_takes_the_place_of_another(fitv2, garments, tmp_path):
    """By default each has its own folder; in a given one the same evaluation may run again."""
    command = ("evaluate", "fashion", "--reference", garments, "--extractor", "garments", "--metrics", "fd", "--num")
    for number in (20, 21, 20):
        assert fitv2(*command, number)[0] == 0
    assert len(list((tmp_path / "outputs/evaluation").glob("*/result.json"))) == 2
    for number in (20, 20):
        assert fitv2(*command, number, "--out", "o")[0] == 0
    before = contents(tmp_path / "o")
    assert "another evaluation" in fitv2(*command, 21, "--out", "o")[0] and contents(tmp_path / "o") == before
    (tmp_path / "o/result.json").unlink()  # As one that was interrupted.
    assert fitv2(*command, 21, "--out", "o")[0] == 0
    for name in ("result.json", "sheet-28x28.png", "samples-28x28.npz"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("precious")
        assert "choose another --out" in fitv2(*command, 20, "--out", name)[0]
        assert (tmp_path / name / name).read_text() == "precious"
    with locked(tmp_path / "o", "a test"):
        assert "in use" in fitv2(*command, 21, "--out", "o")[0]


def option(parameter: inspect.Parameter) -> list[str]:
    """A parameter as it is given in a command, with a value that is none of the defaults."""
    values = {"guidance_interval": ("0.1", "0.9"), "as_json": (), "save_npz": (), "force": (), "solver": ("euler",)}
    values |= {
        "precision": ("bf16",),
        "device": ("cpu",),
        "autoencoder": ("x",),
        "size": ("8x8",),
        "protocol": ("centre",),
    }
    values |= {"extrapolation": ("yarn",), "attention_scale": ("yarn",)}
    return [f"--{'json' if parameter == 'as_json' else parameter.replace('_', '-')}", *values.get(parameter, ("3",))]


EVERY = [name for name in inspect.signature(evaluate).parameters if name not in ("context", "names")]


@pytest.mark.parametrize("name", [name for name in EVERY if name not in OF_SAMPLES])
def test_options_without_effect_on_given_samples_are_refused(fitv2, name):
    said = fitv2("evaluate", "fashion", "--reference", "fashion", *option(name))[0]
    assert "without effect" in said and option(name)[0] in said


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("force", "as_json")])
def test_options_without_effect_on_results_are_refused(fitv2, name):
    assert "without effect" in fitv2("evaluate", "a.json", "b.json", *option(name))[0]


# The command


def test_torchrun_takes_the_documented_command():
    """Its parser reads options behind the module's name as well, and refuses some that are short for two of its own."""
    from torch.distributed.run import get_args_parser

    documented = next(line for line in inspect.getdoc(evaluate).splitlines() if "torchrun" in line).split()[1:]
    assert get_args_parser().parse_args(documented).training_script == "fitv2.cli"


def test_what_is_a_model(model, garments, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(model, run / "model")
    checkpoint = run / "checkpoints/step-00000001"
    checkpoint.mkdir(parents=True)
    shutil.copy(model / "model.safetensors", checkpoint / "ema.safetensors")
    split, pictures = tmp_path / "split", tmp_path / "pictures"
    for folder, name in ((split, ".metadata"), (pictures, "a.png")):
        (folder / "shards").mkdir(parents=True)
        (folder / "shards" / name).touch()
    assert all(map(is_model, ("builtin:fashion", str(model), str(run), str(checkpoint), str(split))))
    assert not any(map(is_model, ("fashion", str(garments), str(pictures), str(tmp_path / "nothing.npz"))))


def report(done: tuple) -> dict:
    code, out = done
    assert code == 0, code
    return json.loads(out)


def test_command_measures_a_model_at_many_sizes(fitv2, model, garments, tmp_path):
    sizes = ("--size", "own", "--size", "20x8", "--size", "own:1.5-turned")
    command = ("evaluate", model, "--reference", garments, "--extractor", "garments", *sizes, "--num", 24)
    found = report(fitv2(*command, "--steps", 1, "--guidance", 1, "--guidance", 2, "--out", "o", "--json"))
    assert found == json.loads((tmp_path / "o/result.json").read_text())
    rows = [(r["stamp"]["size"], r["stamp"]["sampling"]["guidance"], r["stamp"]["protocol"]) for r in found["results"]]
    square = "adm-square"
    of_each = [("own", square), ("20x8", "matched"), ("own:1.5-turned", square)]
    assert rows == [(size, scale, protocol) for scale in (1, 2) for size, protocol in of_each]
    for result in found["results"]:
        keys = {"fd", "sfd", "kid", "kid_error", "classifier_score", "precision", "recall", "density", "coverage"}
        assert keys | {"accuracy"} <= result["scores"].keys()
        assert all(np.isfinite(result["scores"][key]) for key in keys)
        stamp = result["stamp"]
        assert (stamp["num"], stamp["seed"], stamp["model_calls"]) == (24, 0, 1)
        assert stamp["seeds"] == "seed * 1000000 + index" and stamp["labels"] == "10 classes, balanced"
        assert stamp["sampling"]["solver"] == "ab2" and stamp["sampling"]["interval"] == [0, 1]
        assert len(stamp["model_sha256"]) == len(stamp["extractor_sha256"]) == len(stamp["reference_sha256"]) == 64
    assert found["versions"].keys() == {"fitv2", "torch"}
    for name in ("scores.png", "sheet-own-at-1.png", "sheet-20x8-at-2.png", "sheet-own-1-5-turned-at-2.png"):
        assert Image.open(tmp_path / "o" / name).size > (100, 100)


def test_command_shows_a_table_and_where_all_is(fitv2, garments, tmp_path):
    code, out = fitv2("evaluate", "fashion", "--reference", "fashion:test", "--num", 40)
    assert code == 0
    assert "FD-garments" in out and "FID" not in out and "against fashion:test, seen by garments" in out
    assert "ankle boot" in out and "Note (own): " in out and "outputs/evaluation/fashion-" in out


def test_command_writes_what_the_authors_evaluator_reads(fitv2, model, garments, tmp_path):
    command = ("evaluate", model, "--reference", garments, "--extractor", "garments", "--num", 5, *FAST)
    code, _ = fitv2(*command, "--size", "20x8", "--save-npz", "--out", "o")
    assert code == 0
    with np.load(tmp_path / "o/samples-20x8-at-1.npz") as archive:
        assert archive["arr_0"].shape == (5, 20, 8, 3) and archive["arr_0"].dtype == np.uint8
    first = report(fitv2(*command, "--size", "20x8", "--out", "o", "--json"))["results"][0]
    again = fitv2("evaluate", "o/samples-20x8-at-1.npz", *command[2:6], "--out", "p", "--json")
    second = report(again)["results"][0]
    assert second["scores"]["fd"] == pytest.approx(first["scores"]["fd"], rel=1e-6)
    assert "--save-npz writes pictures of one size" in fitv2(*command, "--save-npz", "--out", "o")[0]


def test_command_compares_only_what_is_alike(fitv2, garments, tmp_path):
    command = ("evaluate", "fashion", "--reference", garments, "--extractor", "garments", "--size", "28x8", "--num")
    for out, number, more in (("a", 30, ()), ("c", 20, ()), ("d", 30, ("--protocol", "centre"))):
        assert fitv2(*command, number, "--out", out, *more)[0] == 0
    shutil.copytree("a", "b")
    code, out = fitv2("evaluate", "a/result.json", "b/result.json")
    assert code == 0 and "a/result.json" in out and "b/result.json" in out
    refused = fitv2("evaluate", "a/result.json", "c/result.json")[0]
    assert "differ in number of pictures at 28x8: 30 in a/result.json, 20 in c/result.json" in refused
    assert "protocol at 28x8: matched" in fitv2("evaluate", "a/result.json", "d/result.json")[0]
    code, out = fitv2("evaluate", "a/result.json", "c/result.json", "--force")
    assert code == 0 and "Not comparable: they differ in number of pictures" in out


def test_a_models_pictures_are_compared_with_an_archive_of_somebodys(fitv2, model, garments, tmp_path):
    """Which has no labels and no seeds: nobody can say more than that."""
    command = ("--reference", garments, "--extractor", "garments", "--num", 20, "--size", "28x12")
    write_pictures(tmp_path / "theirs.npz", [noise(28, 12, seed) for seed in range(25)], 25, (28, 12))
    assert fitv2("evaluate", model, *command, *FAST, "--out", "a")[0] == 0
    assert fitv2("evaluate", "theirs.npz", *command, "--out", "b")[0] == 0
    code, out = fitv2("evaluate", "a/result.json", "b/result.json")
    assert code == 0 and "Not comparable" not in out
    assert "Note: how often each class is there is not known of b/result.json: figures compare if it is as in" in out


def test_stamps_say_how_often_each_class_is_there(garments, tmp_path):
    """Of some or of all that a folder has; nobody knows it of an archive."""
    shutil.copytree(garments, tmp_path / "skewed")
    for path in sorted((tmp_path / "skewed/trouser").iterdir())[2:]:
        path.unlink()
    write_pictures(tmp_path / "a.npz", [noise(4, 4)], 1, (4, 4))

    def stamped(name: Path | str, number: int | None = None) -> str | None:
        (samples,) = given_samples(open_pictures(str(name), tmp_path), [], number)
        return samples.about["labels"]

    assert stamped(tmp_path / "skewed") == "10 classes, 2 to 8 pictures of each"
    assert stamped("fashion", 74) == stamped(garments) == "10 classes, balanced"
    assert stamped(tmp_path / "a.npz") is None


def test_nothing_is_called_by_a_name_of_another_network(fitv2, garments, tmp_path):
    command = ("evaluate", garments, "--reference", garments, "--extractor", "garments")
    code, out = fitv2(*command)
    assert code == 0 and all(f" {name}-garments " in out for name in ("FD", "sFD", "KD", "CS"))
    written = next((tmp_path / "outputs/evaluation").glob("*/result.json")).read_text()
    assert not any("inception" in text.lower() or "KID" in text or "FID" in text for text in (out, written))
    (result,) = json.loads(written)["results"]
    assert result["stamp"]["names"].keys() <= result["scores"].keys()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("nothing", "--reference", "fashion"), "no model, folder of pictures or archive 'nothing'"),
        (("builtin:fashion",), "--reference FOLDER"),
        (("fashion", "--reference", "builtin:fashion"), "builtin:fashion is a model or a run; name real pictures"),
        (("fashion", "--reference", "damaged.json"), "fitv2 prepare --autoencoder pixels makes a folder"),
        (("fashion", "--reference", "fashion:half"), "no garments 'fashion:half': fashion are the bundled"),
        (("fashion", "--reference", "fashion:train"), "not installed/train-images-idx3-ubyte.gz is not there"),
        (("fashion:test", "--reference", "fashion"), "not installed/t10k-images-idx3-ubyte.gz is not there"),
        (("builtin:fashion", "--reference", "nothing"), "no folder, archive (.npz) or set of pictures 'nothing'"),
        (("builtin:fashion", "--reference", "fashion", "--size", "9x9", "--num", "10"), "nearest is 8x8"),
        (("builtin:fashion", "--reference", "fashion", "--size", "own:x"), "'own:x' is not a size"),
        (("builtin:fashion", "--reference", "fashion", "--metrics", "fid"), "no metric 'fid'; choose from fd, sfd"),
        (("builtin:fashion", "--reference", "fashion", "--extractor", "vgg"), "no extractor 'vgg'"),
        (("builtin:fashion", "--reference", "fashion", "--extractor", "inception"), "--inception-weights FILE"),
        (("builtin:fashion", "--reference", "fashion", "--protocol", "matched"), "matched needs samples of one size"),
        (("fashion", "--reference", "fashion:test", "--size", "own"), "--size own is for models"),
        (("fashion", "more", "--reference", "fashion"), "one model or set of samples at a time, not 2"),
        (("fashion", "--reference", "fashion:test", "--extractor", "efficientnet-lite0"), "no pictures for"),
        (
            ("fashion", "--reference", "fashion:test", "--num", "10001"),
            "has 10,000 pictures of the size own, not 10001",
        ),
        (("builtin:fashion", "--reference", "fashion:test", "--size", "40000x40000"), "ask for a smaller --size"),
        (("fashion", "--reference", "fashion:test", "--force"), "--force goes with results"),
        (("missing.json", "missing.json"), "missing.json cannot be read"),
        (("damaged.json",), "is no result of fitv2 evaluate"),
        (("fashion", "--reference", "fashion", "--out", "damaged.json"), "is a file; name a folder"),
    ],
)
def test_every_mistake_is_told_in_a_sentence(fitv2, tmp_path, arguments, complaint):
    (tmp_path / "damaged.json").write_text("{}")
    said = fitv2("evaluate", *arguments)[0]
    assert said.startswith("fitv2: ") and complaint in said
    assert not (tmp_path / "outputs").exists()


def command_in_company(cache: str, *arguments: str) -> None:
    """For `processes`, which do not see what the test has changed."""
    os.environ["FITV2_CACHE"] = cache
    generation.SHARD = 3
    command_line(*arguments)


def test_all_processes_leave_pictures_alone_that_another_command_makes(fitv2, garments, model, tmp_path):
    """Two commands of two processes each: the one that comes second ends as a whole, and says why."""
    command = ("evaluate", str(model), "--reference", str(garments), "--extractor", "garments", "--number", "11", *FAST)
    code, _ = fitv2(*command, "--out", "o")
    (shard,) = (tmp_path / "o/samples").glob("*/00000.npz")
    shard.unlink()
    with locked(shard.parent, "a test"):
        second = processes(2, command_in_company, str(tmp_path / "cache"), *command, "--out", str(tmp_path / "o"))
        for member in second:
            member.join(100)
    assert code == 0 and [member.exitcode for member in second] == [1, 1] and not shard.exists()


def test_pictures_do_not_depend_on_the_number_of_processes(fitv2, garments, model, tmp_path, monkeypatch):
    """Two processes make them, and the first says what they are worth."""
    monkeypatch.setattr(generation, "SHARD", 3)
    command = ("evaluate", str(model), "--reference", str(garments), "--extractor", "garments", "--number", "11", *FAST)
    alone = report(fitv2(*command, "--out", "alone", "--json"))
    cache, out = str(tmp_path / "cache"), str(tmp_path / "together")
    started = processes(2, command_in_company, cache, *command, "--out", out)
    for member in started:
        member.join(100)
    assert [member.exitcode for member in started] == [0, 0]
    assert sum(name.endswith(".npz") for name in contents(tmp_path / "alone/samples")) == 4
    assert contents(tmp_path / "together/samples") == contents(tmp_path / "alone/samples")
    together = json.loads((tmp_path / "together/result.json").read_text())
    seen_together, seen_alone = together["results"][0]["scores"], alone["results"][0]["scores"]
    assert seen_together.keys() == seen_alone.keys()
    for name, score in seen_alone.items():  # Features are sums, whose order changes with the number of threads.
        assert seen_together[name] == (pytest.approx(score, rel=1e-6) if isinstance(score, float) else score)

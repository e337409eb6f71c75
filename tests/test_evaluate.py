"""Evaluations: what is compared with what, which figures come out, and what is cached."""

import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save_file

from evaluations import classified, evaluation, noises, samples_of
from fitv2.data.fashion import bundled
from fitv2.errors import UserError
from fitv2.evaluation import evaluate as module
from fitv2.evaluation.evaluate import compute_features, real_size, view_of
from fitv2.evaluation.extractors import Features, GarmentExtractor
from fitv2.evaluation.image_sets import open_images
from fitv2.evaluation.inputs import given_samples, open_reference
from fitv2.evaluation.metrics import Statistics, frechet_distance
from tiny import CLASSES

pytest_plugins = ["evaluations"]
pytestmark = pytest.mark.usefixtures("isolated")


def test_views_scale_to_cover_and_cut_the_centre():
    """Images are cut and not stretched; central squares are as large as the samples', if these have one size."""
    rows, columns = np.mgrid[:60, :80]
    image = Image.fromarray((rows * 2 + columns).astype(np.uint8))
    for size in ((40, 90), (30, 30), (64, 20), (200, 100)):
        scale = max(size[0] / 60, size[1] / 80)
        whole = image.resize((round(80 * scale), round(60 * scale)), Image.Resampling.BICUBIC)
        left, top = (whole.width - size[1]) // 2, (whole.height - size[0]) // 2
        expected = np.asarray(whole.crop((left, top, left + size[1], top + size[0])), float)
        found = np.asarray(view_of(image, "matched", size), float)
        assert found.shape == size  # Up to rounding: the scaled image has whole sides, and its cut whole pixels.
        assert np.abs(found - expected).max() <= 3 and abs((found - expected).mean()) < 0.6
    assert view_of(image, "adm-square") is image
    assert np.array_equal(np.asarray(view_of(image, "centre")), np.asarray(image)[:, 10:70])
    sizes = [real_size(protocol, (20, 50)) for protocol in ("adm-square", "matched", "centre")]
    assert sizes == [None, (20, 50), (20, 20)] and real_size("centre", None) is None


@pytest.fixture
def seen(monkeypatch) -> list[tuple[int, int]]:
    """The sizes of all images that come to an extractor."""
    sizes, whole = [], GarmentExtractor.__call__

    def look(self, images):
        sizes.extend([tuple(images.shape[2:])] * len(images))
        return whole(self, images)

    monkeypatch.setattr(GarmentExtractor, "__call__", look)
    return sizes


@pytest.mark.parametrize(
    ("protocol", "of_samples", "of_real"),
    [("matched", (20, 8), (20, 8)), ("centre", (8, 8), (8, 8)), ("adm-square", (20, 8), None)],
)
def test_protocols(garments, tmp_path, seen, protocol, of_samples, of_real):
    reference = open_reference(str(garments), tmp_path)
    samples = samples_of(noises(tmp_path / "samples.npz", 9, (20, 8)), tmp_path)
    result = evaluation(reference, tmp_path, protocol=protocol).score(samples)
    assert set(seen[:9]) == {of_samples} and len(seen) == 89
    own = sorted(map(tuple, reference.images.sizes.tolist()))
    assert sorted(seen[9:]) == ([of_real] * 80 if of_real else own)
    assert (result.stamp["protocol"], result.stamp["size"], result.stamp["num"]) == (protocol, "20x8", 9)
    assert result.stamp["filter"] == (None if protocol == "adm-square" else "antialiased bicubic")


def test_default_protocols(garments, tmp_path):
    plain, known = (evaluation(open_reference(str(name), tmp_path), tmp_path) for name in (garments, "fashion:test"))
    assert (plain.protocol_for((8, 8)), plain.protocol_for(None)) == ("matched", "adm-square")
    assert known.protocol_for((8, 8)) == "adm-square"
    with pytest.raises(UserError, match="one size"):
        replace(plain, protocol="matched").protocol_for(None)
    with pytest.raises(UserError, match="no images"):
        replace(known, protocol="centre").protocol_for((8, 8))


def test_garments_against_the_test_statistics(tmp_path):
    """Three hundred bundled ones, each in its own size: what the distance of their features is, computed apart."""
    real, samples = bundled(), samples_of("fashion", tmp_path, 300)
    reference = open_reference("fashion:test", tmp_path)
    result = evaluation(reference, tmp_path).score(samples)
    assert reference.given.statistics.count == 10_000
    by_class = samples.chosen[np.argsort(real.labels[samples.chosen], kind="stable")]
    features, classes = classified([real.images[i] for i in by_class])
    expected = frechet_distance(Statistics.of(features), reference.given.statistics)
    assert result.scores["fd"] == pytest.approx(expected, rel=1e-4)
    right = (classes == torch.arange(10).repeat_interleave(30)).double()
    assert result.scores["accuracy"] == pytest.approx(float(right.mean()))
    assert result.scores["accuracy_error"] == pytest.approx(float(right.std(correction=0)) / 300**0.5)
    of_class = dict(zip(CLASSES, right.view(10, 30).mean(1).tolist(), strict=True))
    assert result.scores["accuracy_per_class"] == pytest.approx(of_class)
    assert result.real["accuracy"] == pytest.approx(0.925, abs=0.01)
    assert "kid" not in result.scores and any("no kid" in note for note in result.notes)
    assert any("biased upwards" in note for note in result.notes)
    assert result.stamp["reference_statistics"] == "given"


def test_real_garments_against_themselves_and_against_noise(garments, tmp_path):
    reference, same = open_reference(str(garments), tmp_path), samples_of(garments, tmp_path)
    result = evaluation(reference, tmp_path).score(same)
    assert result.scores["fd"] == pytest.approx(0, abs=1e-4) and result.scores["sfd"] == pytest.approx(0, abs=1e-4)
    assert (result.scores["precision"], result.scores["recall"], result.scores["coverage"]) == (1, 1, 1)
    assert result.scores["accuracy"] == pytest.approx(result.real["accuracy"]) and result.real["accuracy"] > 0.8
    assert result.scores["classifier_score"] == result.real["classifier_score"]
    low, high = result.real["kid_range"]
    assert low < 0 < high and low < result.real["kid"] < high
    assert 0.5 < result.real["precision"] <= 1 and result.real["drawn"] == len(same.chosen) // 2
    assert any("40 of 80 samples" in note for note in result.notes)
    # Samples that are real score as real images do, at equal numbers, or better if they are the same ones.
    assert 0 < result.equal["fd"] <= result.real["fd_range"][1]
    bad = evaluation(reference, tmp_path).score(samples_of(noises(tmp_path / "n.npz", 40, (28, 12)), tmp_path)).scores
    assert bad["fd"] > 2 * result.real["fd"] > 0
    assert bad["fd"] > 10 and bad["kid"] > 3 * bad["kid_error"] > 0 and bad["coverage"] < 0.3
    assert "accuracy" not in bad


def test_blurred_and_repeated_garments_are_far_from_real_ones(tmp_path):
    real, known = bundled(), open_reference("fashion:test", tmp_path).given.statistics
    images = [Image.fromarray(image) for image in real.images[::5]]
    half = [image.reduce(2) for image in images]
    few = [images[i] for label in range(10) for i in np.flatnonzero(real.labels[::5] == label)[:5]]
    own, blurred, repeated = (
        frechet_distance(Statistics.of(classified(some)[0]), known) for some in (images, half, few * 40)
    )
    assert own < 0.5 and min(blurred, repeated) > 5 * own


def test_classes_that_the_extractor_does_not_know_are_those_of_the_nearest(garments, tmp_path):
    """The folders' classes under other names: the neighbours vote."""
    for path in garments.rglob("*.png"):
        target = tmp_path / "renamed" / f"my {path.parent.name}" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    reference = open_reference(str(tmp_path / "renamed"), tmp_path)
    result = evaluation(reference, tmp_path, metrics=("accuracy",)).score(samples_of(tmp_path / "renamed", tmp_path))
    assert result.scores["accuracy_by"] == "the 5 nearest real images"
    assert 0.4 < result.real["accuracy"] < result.scores["accuracy"]
    assert "drawn" not in result.real  # Nothing was set against others.
    assert list(result.scores["accuracy_per_class"]) == sorted(f"my {name}" for name in CLASSES)


def test_classes_that_the_reference_lacks_have_no_real_accuracy(garments, tmp_path):
    """By class there is one; of empty folders nothing is requested."""
    shutil.copytree(garments, tmp_path / "fewer")
    shutil.rmtree(tmp_path / "fewer/bag")
    (tmp_path / "fewer/bag").mkdir()
    whole, fewer = (open_reference(str(folder), tmp_path) for folder in (garments, tmp_path / "fewer"))
    assert fewer.images.class_names == sorted({*CLASSES} - {"bag"})
    result = evaluation(fewer, tmp_path).score(samples_of(garments, tmp_path))
    assert "accuracy" not in result.real and len(result.real["accuracy_per_class"]) == 9
    assert any("no image of bag" in note for note in result.notes)
    result = evaluation(whole, tmp_path).score(samples_of(tmp_path / "fewer", tmp_path))
    of_class = result.real["accuracy_per_class"]
    assert result.real["accuracy"] == pytest.approx(np.mean([of_class[name] for name in fewer.images.class_names]))
    assert result.scores["accuracy"] == pytest.approx(result.real["accuracy"])


def test_smaller_real_images_and_too_few_of_them_are_told(garments, tmp_path):
    samples = samples_of(noises(tmp_path / "large.npz", 8, (56, 56)), tmp_path)
    notes = " ".join(evaluation(open_reference(str(garments), tmp_path), tmp_path).score(samples).notes)
    assert "smaller than 56x56" in notes
    assert "8 samples are too few" in notes


# What is cached


def test_images_are_seen_once(garments, tmp_path, seen, caplog, monkeypatch):
    """Features are computed again for damaged files, other protocols, images and preprocessing."""
    folder, (tall, wide) = tmp_path / "copy", given_samples(open_images("fashion", tmp_path), [(28, 8), (8, 28)], 20)
    shutil.copytree(garments, folder)

    def score(samples=tall, **changes):
        seen.clear()
        return evaluation(open_reference(str(folder), tmp_path), tmp_path, **changes).score(samples)

    first = score()
    assert len(seen) == 100
    assert score() == first and not seen
    (real,) = (tmp_path / "cache").glob("features-*")
    whole = load(real.read_bytes())
    real.write_bytes(real.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING):
        assert score() == first
    assert len(seen) == 80 and "damaged" in caplog.text
    save_file(whole | {"pooled_covariance": -torch.eye(64).double()}, real)
    assert score() == first and len(seen) == 80
    assert score(protocol="centre").scores != first.scores and len(seen) == 20 + 80
    assert score(wide).real["classifier_score"] != first.real["classifier_score"] and len(seen) == 20 + 80
    path = next(folder.rglob("*.png"))
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    changed = score()
    assert len(seen) == 80 and changed.scores["fd"] != first.scores["fd"]
    assert changed.stamp["reference_sha256"] != first.stamp["reference_sha256"]
    monkeypatch.setattr(GarmentExtractor, "resize", "in another way")
    score()
    assert len(seen) == 100


class FirstPixel:
    """An extractor that sees no more of an image, and knows ten classes by it."""

    digest, mode = "", "L"

    def __call__(self, images: torch.Tensor) -> Features:
        assert not torch.backends.cudnn.allow_tf32
        numbers = images[:, 0, 0, :1].float()
        return Features(numbers, numbers, torch.eye(10)[numbers[:, 0].long() % 10])


def test_of_very_many_images_those_kept_are_of_all_classes(monkeypatch):
    """Evenly spaced ones of classes in turn would not be; statistics are of all."""
    monkeypatch.setattr(module, "MOST_KEPT", 100)
    images = [Image.fromarray(np.full((1, 1), i, np.uint8)) for i in range(200)]
    found = compute_features(FirstPixel(), iter(images), np.arange(200) % 10, lambda count: None)
    assert np.array_equal(found.labels, found.classes) and np.array_equal(found.pooled[:, 0] % 10, found.labels)
    assert np.bincount(found.labels).min() >= 4 and len(found.labels) == 100
    assert found.statistics.count == 200 and float(found.statistics.mean) == 99.5

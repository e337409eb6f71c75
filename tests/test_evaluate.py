"""Evaluations: what is compared with what, what is cached, and the command."""

import inspect
import json
import logging
import os
import shutil
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save_file

from evaluations import SHAPES, classified, contents, evaluation, isolate, report, samples_of, write_garments
from fitv2.checkpoints.model_folder import save_pretrained
from fitv2.cli.evaluate import OF_SAMPLES, evaluate
from fitv2.cli.evaluated import is_model
from fitv2.data.fashion import bundled
from fitv2.errors import UserError
from fitv2.evaluation import features as features_module
from fitv2.evaluation import samples as samples_module
from fitv2.evaluation.evaluate import real_size, view_of
from fitv2.evaluation.extractors import NAMES, Features, GarmentExtractor
from fitv2.evaluation.features import compute_features
from fitv2.evaluation.metrics import Statistics, frechet_distance
from fitv2.evaluation.references import open_reference
from fitv2.evaluation.samples import given_samples
from fitv2.evaluation.sources import open_images
from fitv2.locks import locked
from image_folders import noise
from tiny import CLASSES, CONFIG, command_line, processes, random_model

FAST = ("--steps", "1", "--guidance", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_pretrained(folder, CONFIG, random_model().state_dict(), CLASSES, SHAPES, torch.float32, step=40)
    return folder


@pytest.fixture(scope="module")
def garments(tmp_path_factory) -> Path:
    return write_garments(tmp_path_factory.mktemp("garments"))


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch) -> None:
    isolate(tmp_path, monkeypatch)


def noises(path: Path, number: int, size: tuple[int, int]) -> Path:
    """An archive of noise."""
    np.savez(path, arr_0=np.stack([np.asarray(noise(*size, seed)) for seed in range(number)]))
    return path


# What is compared


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
    plain, known = open_reference(str(garments), tmp_path), open_reference("fashion:test", tmp_path)
    assert evaluation(plain, tmp_path).protocol_for((8, 8)) == "matched"
    assert evaluation(plain, tmp_path).protocol_for(None) == "adm-square"
    assert evaluation(known, tmp_path).protocol_for((8, 8)) == "adm-square"
    with pytest.raises(UserError, match="one size"):
        evaluation(plain, tmp_path, protocol="matched").protocol_for(None)
    with pytest.raises(UserError, match="no images for garments by centre"):
        evaluation(known, tmp_path, protocol="centre").protocol_for((8, 8))


def test_garments_against_the_test_statistics(tmp_path):
    """Three hundred bundled ones, each in its own size: what the distance of their features is, computed apart."""
    real, samples = bundled(), samples_of("fashion", tmp_path, 300)
    reference = open_reference("fashion:test", tmp_path)
    result = evaluation(reference, tmp_path).score(samples)
    assert reference.known.statistics.count == 10_000
    by_class = samples.chosen[np.argsort(real.labels[samples.chosen], kind="stable")]
    features, classes = classified([real.images[i] for i in by_class])
    expected = frechet_distance(Statistics.of(features), reference.known.statistics)
    assert result.scores["fd"] == pytest.approx(expected, rel=1e-4)
    right = (classes == torch.arange(10).repeat_interleave(30)).double()
    assert result.scores["accuracy"] == pytest.approx(float(right.mean()))
    assert result.scores["accuracy_error"] == pytest.approx(float(right.std(correction=0)) / 300**0.5)
    of_class = dict(zip(CLASSES, right.view(10, 30).mean(1).tolist(), strict=True))
    assert result.scores["accuracy_per_class"] == pytest.approx(of_class)
    assert result.real["accuracy"] == pytest.approx(0.925, abs=0.01)
    assert "kid" not in result.scores and any("no kid and no pr" in note for note in result.notes)
    assert any("300 images is biased upwards" in note for note in result.notes)
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
    assert any("at equal numbers 40 of 80 samples are compared" in note for note in result.notes)
    # Samples that are real score as real images do, at equal numbers, or better if they are the same ones.
    assert 0 < result.equal["fd"] <= result.real["fd_range"][1]
    bad = evaluation(reference, tmp_path).score(samples_of(noises(tmp_path / "n.npz", 40, (28, 12)), tmp_path)).scores
    assert bad["fd"] > 2 * result.real["fd"] > 0
    assert bad["fd"] > 10 and bad["kid"] > 3 * bad["kid_error"] > 0 and bad["coverage"] < 0.3
    assert "accuracy" not in bad


def test_blurred_and_repeated_garments_are_far_from_real_ones(tmp_path):
    real, known = bundled(), open_reference("fashion:test", tmp_path).known.statistics
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
    assert "80 of 80 real images are smaller than 56x56" in notes
    assert "8 samples are too few for a covariance of 64 features" in notes


# What is cached


def test_images_are_seen_once(garments, tmp_path, seen, caplog):
    reference = open_reference(str(garments), tmp_path)
    tall, wide = given_samples(open_images("fashion", tmp_path), [(28, 8), (8, 28)], 20)
    first = evaluation(reference, tmp_path).score(tall)
    assert len(seen) == 100
    assert evaluation(open_reference(str(garments), tmp_path), tmp_path).score(tall) == first
    assert len(seen) == 100
    (real,) = (tmp_path / "cache").glob("features-*")
    whole = load(real.read_bytes())
    real.write_bytes(real.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING):
        assert evaluation(reference, tmp_path).score(tall) == first
    assert len(seen) == 180 and "damaged" in caplog.text
    save_file(whole | {"pooled_covariance": -torch.eye(64).double()}, real)
    assert evaluation(reference, tmp_path).score(tall) == first and len(seen) == 260
    assert evaluation(reference, tmp_path, protocol="centre").score(tall).scores != first.scores
    assert len(seen) == 260 + 20 + 80
    assert evaluation(reference, tmp_path).score(wide).real["classifier_score"] != first.real["classifier_score"]
    assert len(seen) == 360 + 20 + 80


def test_features_are_computed_again_for_another_preprocessing_or_changed_images(garments, tmp_path, monkeypatch, seen):
    folder, (samples,) = tmp_path / "copy", given_samples(open_images("fashion", tmp_path), [(28, 8)], 20)
    shutil.copytree(garments, folder)
    first = evaluation(open_reference(str(folder), tmp_path), tmp_path).score(samples)
    path = next(folder.rglob("*.png"))
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    second = evaluation(open_reference(str(folder), tmp_path), tmp_path).score(samples)
    assert first.stamp["reference_sha256"] != second.stamp["reference_sha256"]
    assert first.scores["fd"] != second.scores["fd"] and len(seen) == 20 + 80 + 80
    monkeypatch.setattr(GarmentExtractor, "resize", "in another way")
    evaluation(open_reference(str(folder), tmp_path), tmp_path).score(samples)
    assert len(seen) == 280


class FirstPixel:
    """An extractor that sees no more of an image, and knows ten classes by it."""

    digest, mode = "", "L"

    def __call__(self, images: torch.Tensor) -> Features:
        assert not torch.backends.cudnn.allow_tf32
        numbers = images[:, 0, 0, :1].float()
        return Features(numbers, numbers, torch.eye(10)[numbers[:, 0].long() % 10])


def test_of_very_many_images_those_kept_are_of_all_classes(monkeypatch):
    """Evenly spaced ones of classes in turn would not be; statistics are of all."""
    monkeypatch.setattr(features_module, "MOST_KEPT", 100)
    images = [Image.fromarray(np.full((1, 1), i, np.uint8)) for i in range(200)]
    found = compute_features(FirstPixel(), iter(images), np.arange(200) % 10, lambda count: None)
    assert np.array_equal(found.labels, found.classes) and np.array_equal(found.pooled[:, 0] % 10, found.labels)
    assert np.bincount(found.labels).min() >= 4 and len(found.labels) == 100
    assert found.statistics.count == 200 and float(found.statistics.mean) == 99.5


# The command


def test_no_result_takes_the_place_of_another(fitv2, garments, tmp_path):
    """By default each has its own folder; in a given one the same evaluation may run again."""
    command = ("evaluate", "fashion", "--reference", garments, "--extractor", "garments", "--metrics", "fd", "-n")
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


def option(parameter: str) -> list[str]:
    """A parameter as it is given in a command, with a value that is none of the defaults."""
    values = {"guidance_interval": ("0.1", "0.9"), "as_json": (), "save_npz": (), "force": (), "solver": ("euler",)}
    values |= {"precision": ("bf16",), "device": ("cpu",), "autoencoder": ("x",), "size": ("8x8",)}
    values |= {"extrapolation": ("yarn",), "attention_scale": ("yarn",), "protocol": ("centre",)}
    values |= {"extractor": ("garments",)}
    return [f"--{'json' if parameter == 'as_json' else parameter.replace('_', '-')}", *values.get(parameter, ("3",))]


EVERY = [name for name in inspect.signature(evaluate).parameters if name not in ("context", "names")]


def test_options_without_effect_are_refused(fitv2):
    """On samples that exist already, and on results."""
    for name in EVERY:
        if name not in OF_SAMPLES:
            said = fitv2("evaluate", "fashion", "--reference", "fashion", *option(name))[0]
            assert "without effect" in said and option(name)[0] in said
        if name not in ("force", "as_json"):
            assert "without effect" in fitv2("evaluate", "a.json", "b.json", *option(name))[0], name


def test_choices_are_the_extractors():
    (annotated, _) = get_args(get_type_hints(evaluate)["extractor"])
    assert {*get_args(annotated)} == {*NAMES}


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
    split, images = tmp_path / "split", tmp_path / "images"
    for folder, name in ((split, ".metadata"), (images, "a.png")):
        (folder / "shards").mkdir(parents=True)
        (folder / "shards" / name).touch()
    assert all(map(is_model, ("builtin:fashion", str(model), str(run), str(checkpoint), str(split))))
    assert not any(map(is_model, ("fashion", str(garments), str(images), str(tmp_path / "nothing.npz"))))


def test_command_measures_a_model_at_many_sizes(fitv2, model, garments, tmp_path):
    sizes = ("--size", "own", "--size", "20x8", "-s", "own:1.5-turned")
    command = ("evaluate", model, "-r", garments, "--extractor", "garments", *sizes, "-n", 24)
    found = report(fitv2(*command, "--steps", 1, "-g", 1, "-g", 2, "-o", "o", "--json", "--seed", 7))
    assert found == json.loads((tmp_path / "o/result.json").read_text())
    rows = [(r["stamp"]["size"], r["stamp"]["sampling"]["guidance"], r["stamp"]["protocol"]) for r in found["results"]]
    square = "adm-square"
    of_each = [("own", square), ("20x8", "matched"), ("own:1.5-turned", square)]
    assert rows == [(size, scale, protocol) for scale in (1, 2) for size, protocol in of_each]
    for result in found["results"]:
        keys = {"fd", "sfd", "kid", "kid_error", "classifier_score", "precision", "recall", "density", "coverage"}
        assert all(np.isfinite(result["scores"][key]) for key in keys | {"accuracy", "accuracy_error"})
        stamp = result["stamp"]
        assert (stamp["num"], stamp["seed"], stamp["model_calls"], stamp["step"]) == (24, 7, 1, 40)
        assert stamp["seeds"] == "seed + index" and stamp["labels"] == "10 classes, balanced"
        assert stamp["sampling"]["solver"] == "ab2" and stamp["sampling"]["interval"] == [0, 1]
        assert len(stamp["model_sha256"]) == len(stamp["extractor_sha256"]) == len(stamp["reference_sha256"]) == 64
    assert found["versions"].keys() == {"fitv2", "torch"}
    for name in ("scores.png", "sheet-own-at-1.png", "sheet-20x8-at-2.png", "sheet-own-1-5-turned-at-2.png"):
        assert Image.open(tmp_path / "o" / name).size > (100, 100)


def test_every_image_of_an_evaluation_can_be_made_alone(fitv2, model, garments, tmp_path):
    command = ("evaluate", model, "--reference", garments, "--extractor", "garments", "--metrics", "fd")
    assert fitv2(*command, "-n", 12, "--seed", 5, "--steps", 2, "--guidance", 2, "--out", "o")[0] == 0
    (folder,) = (tmp_path / "o/samples").iterdir()
    listed = [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]
    assert [row["index"] for row in listed] == list(range(12)) and listed[10]["seed"] == 15
    with np.load(folder / "00000.npz") as shard:
        made = shard["arr_10"].astype(float)
    row = listed[10]
    size = "{}x{}".format(*row["size"])
    alone = ("sample", "--model", model, "--labels", row["class"], "--size", size, "--seed", row["seed"])
    assert fitv2(*alone, "--steps", 2, "--guidance", 2, "--out", "s")[0] == 0
    image = np.asarray(Image.open(next((tmp_path / "s").glob(f"*seed{row['seed']}.png"))), float)
    assert np.abs(image - made).max() <= 1 and image.std() > 1


def test_command_shows_a_table_and_where_all_is(fitv2, garments, tmp_path):
    code, out = fitv2("evaluate", "fashion", "--reference", "fashion:test", "--num", 40)
    assert code == 0
    assert "FD-garments" in out and "FID" not in out and "against fashion:test, seen by garments" in out
    assert "ankle boot" in out and "Note (own): " in out and "outputs/evaluation/fashion-" in out


def test_command_writes_what_the_authors_evaluator_reads(fitv2, model, garments, tmp_path):
    command = ("evaluate", model, "--reference", garments, "--extractor", "garments", "-n", 5, *FAST)
    assert fitv2(*command, "--size", "20x8", "--save-npz", "--out", "o")[0] == 0
    with np.load(tmp_path / "o/samples-20x8-at-1.npz") as archive:
        assert archive["arr_0"].shape == (5, 20, 8, 3) and archive["arr_0"].dtype == np.uint8
    first = report(fitv2(*command, "--size", "20x8", "--out", "o", "--json"))["results"][0]
    again = fitv2("evaluate", "o/samples-20x8-at-1.npz", *command[2:6], "--out", "p", "--json")
    assert report(again)["results"][0]["scores"]["fd"] == pytest.approx(first["scores"]["fd"], rel=1e-6)
    assert "one size" in fitv2(*command, "--save-npz", "--out", "o")[0]


def test_command_compares_only_what_is_alike(fitv2, model, garments, tmp_path):
    command = ("evaluate", "fashion", "--reference", garments, "--extractor", "garments", "--size", "28x8")
    command = (*command, "--metrics", "fd", "-n")
    for out, number, more in (("a", 30, ()), ("c", 20, ()), ("d", 30, ("--protocol", "centre"))):
        assert fitv2(*command, number, "--out", out, *more)[0] == 0
    shutil.copytree("a", "b")
    code, out = fitv2("evaluate", "a/result.json", "b/result.json")
    assert code == 0 and "a/result.json" in out and "b/result.json" in out
    refused = fitv2("evaluate", "a/result.json", "c/result.json")[0]
    assert "number of images at 28x8: 30 in a/result.json, 20 in c/result.json" in refused
    assert "protocol at 28x8: matched" in fitv2("evaluate", "a/result.json", "d/result.json")[0]
    code, out = fitv2("evaluate", "a/result.json", "c/result.json", "--force")
    assert code == 0 and "Not comparable: they differ in number of images" in out
    # An archive has no labels and no seeds.
    noises(tmp_path / "theirs.npz", 30, (28, 8))
    assert fitv2("evaluate", "theirs.npz", *command[2:], 30, "--out", "e")[0] == 0
    code, out = fitv2("evaluate", "a/result.json", "e/result.json")
    assert code == 0 and "Not comparable" not in out and "occurs in e/result.json is not known" in out


def test_nothing_is_called_by_a_name_of_another_network(fitv2, garments, tmp_path):
    code, out = fitv2("evaluate", garments, "--reference", garments, "--extractor", "garments")
    assert code == 0 and all(f" {name}-garments " in out for name in ("FD", "sFD", "KD", "CS"))
    written = next((tmp_path / "outputs/evaluation").glob("*/result.json")).read_text()
    assert not any("inception" in text.lower() or "KID" in text or "FID" in text for text in (out, written))
    (result,) = json.loads(written)["results"]
    assert result["stamp"]["names"].keys() <= result["scores"].keys()


MODEL = ("builtin:fashion", "--reference", "fashion")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("nothing", "--reference", "fashion"), "'nothing'"),
        (("builtin:fashion",), "--reference FOLDER"),
        (("fashion", "--reference", "builtin:fashion"), "is a model"),
        (("fashion", "--reference", "damaged.json"), "fitv2 prepare --autoencoder pixels"),
        (("fashion", "--reference", "fashion:half"), "'fashion:half'"),
        (("fashion", "--reference", "fashion:train"), "not installed/train-images-idx3-ubyte.gz"),
        (("fashion:test", "--reference", "fashion"), "not installed/t10k-images-idx3-ubyte.gz"),
        (("builtin:fashion", "--reference", "nothing"), "'nothing'"),
        ((*MODEL, "--size", "9x9", "-n", "10"), "nearest is 8x8"),
        ((*MODEL, "--size", "own:x"), "'own:x' is not a size"),
        ((*MODEL, "--metrics", "fid"), "'fid'"),
        ((*MODEL, "--extractor", "inception"), "--inception-weights FILE"),
        ((*MODEL, "--protocol", "matched"), "one size"),
        (("fashion", "--reference", "fashion:test", "--size", "own"), "for models"),
        (("fashion", "more", "--reference", "fashion"), "not 2"),
        (("fashion", "--reference", "fashion:test", "--extractor", "efficientnet-lite0"), "no images for"),
        (("builtin:fashion", "--reference", "fashion:test", "--size", "40000x40000"), "smaller --size"),
        (("fashion", "--reference", "fashion:test", "--force"), "--force"),
        (("missing.json", "missing.json"), "missing.json cannot be read"),
        (("damaged.json",), "not a result"),
        (("fashion", "--reference", "fashion", "--out", "damaged.json"), "is a file"),
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
    samples_module.SHARD = 3
    command_line(*arguments)


@pytest.mark.slow
def test_images_do_not_depend_on_the_number_of_processes(fitv2, garments, model, tmp_path, monkeypatch):
    """Two processes make them, and the first scores them; not while another command makes the same ones."""
    monkeypatch.setattr(samples_module, "SHARD", 3)
    command = ("evaluate", str(model), "--reference", str(garments), "--extractor", "garments", "-n", "11", *FAST)
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
    (shard,) = (tmp_path / "together/samples").glob("*/00000.npz")
    shard.unlink()
    with locked(shard.parent, "a test"):
        started = processes(2, command_in_company, cache, *command, "--out", out)
        for member in started:
            member.join(100)
    assert [member.exitcode for member in started] == [1, 1] and not shard.exists()

"""Results side by side: what is compared, what is refused, and what their figures are called.

data/evaluation: a result.json of 60 images, and features of 12 images by `Thirds`, written by commit ae82e1f.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fitv2.evaluation.evaluate import cached_features
from fitv2.evaluation.extractors import EfficientNetExtractor, GarmentExtractor, InceptionExtractor
from fitv2.evaluation.results import MUST_AGREE, class_counts, read_results

FROZEN = Path(__file__).parent / "data/evaluation"


def test_class_counts():
    labels = np.array([0, 0, 1, 1, 2])
    assert class_counts(labels, 3) == "3 classes, balanced" and class_counts(labels, 0) is None
    assert class_counts(labels, 4) == "4 classes, 0 to 2 images of each"


def results(tmp_path: Path, **stamps: dict) -> list[str]:
    """Names of files of results with those changes of a stamp."""
    usual = dict.fromkeys(MUST_AGREE, "1") | {"size": "8x8", "labels": "2 classes, balanced"}
    usual |= {"names": {"fd": "FD-x"}, "reference": "r", "num": 60, "reference_count": 60}
    for name, changes in stamps.items():
        result = {"stamp": usual | changes, "scores": {"fd": 1.0}, "real": {}, "notes": []}
        (tmp_path / f"{name}.json").write_text(json.dumps({"format": 2, "results": [result]}))
    return [f"{name}.json" for name in stamps]


def test_every_part_of_a_stamp_that_matters_is_compared(fitv2, tmp_path):
    keys = {"suite", "protocol", "filter", "num", "reference_sha256", "reference_count"}
    assert {*MUST_AGREE} == keys | {"extractor", "extractor_sha256", "resize"}
    for key in MUST_AGREE:
        files = results(tmp_path, a={}, b={key: "2"})
        assert f"{MUST_AGREE[key]} at 8x8" in fitv2("evaluate", *files).sentence


def test_seeds_of_which_some_images_share_the_noise_are_told(fitv2, tmp_path):
    stamps = {
        str(seed): {"num": 20, "model_sha256": "m", "seeds": "seed + index", "seed": seed} for seed in (0, 10, 30)
    }
    files = results(tmp_path, **stamps)
    assert "seeds 0 and 10" in fitv2("evaluate", *files).ok().out
    assert "seeds" not in fitv2("evaluate", files[1], files[2]).ok().out


def test_seeds_and_unknown_classes_do_not_make_results_incomparable(fitv2, tmp_path):
    """What is known of two is compared also where the first of three knows nothing."""
    free = {"labels": "as the model likes"}
    fitv2("evaluate", *results(tmp_path, a={"seeds": 1}, b={"seeds": None})).ok()
    out = fitv2("evaluate", *results(tmp_path, a=free, b={})).ok().out
    assert "a.json: the model was asked for no class" in out
    assert "Note" not in fitv2("evaluate", *results(tmp_path, a=free, b=free)).ok().out
    three = results(tmp_path, a={"labels": None}, b={}, c={"labels": "2 classes, 1 to 3 images of each"})
    assert "frequency of classes at 8x8" in fitv2("evaluate", *three).sentence


def test_classes_are_compared_and_judges_kept_apart(fitv2, tmp_path):
    """Ten balanced classes of cats are not ten of cars; accuracies by different judges have rows of their own."""
    files = results(tmp_path, a={"class_names": ["cat", "dog"]}, b={"class_names": ["bus", "car"]}, c={})
    assert "cat, dog in a.json" in fitv2("evaluate", *files).sentence
    for file, judge in zip(files, ("x", "y"), strict=False):
        content = json.loads((tmp_path / file).read_text())
        content["results"][0]["scores"] |= {"accuracy": 0.5, "accuracy_by": judge}
        content["results"][0]["stamp"].pop("class_names")
        (tmp_path / file).write_text(json.dumps(content))
    out = fitv2("evaluate", *files).ok().out
    assert [line.split()[:3] for line in out.splitlines() if line.startswith(" accuracy by")] == [
        ["accuracy", "by", "x"],
        ["accuracy", "by", "y"],
    ]


def test_results_of_some_sizes_in_common_are_compared_at_those(fitv2, tmp_path):
    """Others are named; without any in common there is nothing to compare."""
    files = results(tmp_path, a={}, b={}, c={"size": "own"})
    (content, more) = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "c.json"))
    (tmp_path / "a.json").write_text(json.dumps(content | {"results": content["results"] + more["results"]}))
    out = fitv2("evaluate", "a.json", "b.json").ok().out
    assert "own is not in b.json" in out
    assert "samples of many sizes" in fitv2("evaluate", "a.json", "c.json").ok().out
    assert "they differ in sizes" in fitv2("evaluate", *files[1:]).sentence


class Thirds:
    """An extractor whose features are the means of three parts of an image."""

    digest, resize, mode = "0", "none", "L"


def test_files_of_earlier_versions_are_read(fitv2, tmp_path):
    """The features under the name that they had."""
    (own, whole) = read_results(FROZEN / "result.json")
    assert (own.name, whole.name) == ("28x12 at 1", "own at 1") and own.scores["fd"] == pytest.approx(22.76, abs=0.01)
    shutil.copy(FROZEN / "result.json", tmp_path / "a.json")
    assert "22.76" in fitv2("evaluate", "a.json", "a.json").ok().out
    found = cached_features(FROZEN, Thirds(), ["some images", None], lambda: pytest.fail("computed again"))
    assert found.statistics.mean.tolist() == pytest.approx([129.2, 125.55, 119.583], abs=1e-3)
    assert found.statistics.count == 12 and found.labels.tolist() == [0, 1, 2] * 4


def test_results_of_before_are_told(fitv2, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"format": 1, "results": []}))
    assert "format is 1" in fitv2("evaluate", "a.json", "a.json").sentence


def test_only_inceptions_figures_have_its_names():
    of_inception = InceptionExtractor.titles
    subsets = {"kid": "KD", "kid_subsets": "KID of 100 subsets"}
    assert of_inception == {"fd": "FID", "sfd": "sFID", "classifier_score": "Inception Score"} | subsets
    for extractor in (GarmentExtractor, EfficientNetExtractor):
        called = extractor.titles
        assert called.keys() < of_inception.keys() and {*called.values()}.isdisjoint(of_inception.values())

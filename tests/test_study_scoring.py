"""What the models of a study are asked for, what they are compared with, and what is scored anew."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from fitv2.build import build_model_config
from fitv2.checkpoints.model_folder import load_pretrained
from fitv2.cli.progress import image_progress
from fitv2.distributed.ranks import join_processes
from fitv2.evaluation.frechet import Statistics, frechet_distance
from fitv2.evaluation.summary import summarise
from fitv2.prepare.run import prepare
from fitv2.prepare.settings import build_encoder
from fitv2.prepare.sources import FolderSource
from fitv2.randomness import Purpose, numpy_generator
from fitv2.settings import FashionSettings
from fitv2.study import scoring, views
from fitv2.study.one_run import perform
from fitv2.study.page import page
from fitv2.study.real import read_real, write_real
from fitv2.study.record import read_record
from fitv2.study.report import load_report
from fitv2.study.scoring import SCORES, recognised
from fitv2.study.tables import final_rows
from fitv2.study.views import croppable, load_views
from pictures import good_files, write_files
from studies import BOTH, FURTHER, SIT, SQUARE, TREE, home, job, nothing
from tiny import CLASSES, garments, tiny_autoencoder


@pytest.fixture
def work(tmp_path) -> Path:
    """The folder of trainings."""
    return tmp_path / "work"


def test_a_fixed_grid_is_scored_on_its_own_square_alone(work):
    changes = {"variants": TREE["variants"] | {"SiT": SIT}, "evaluation": TREE["evaluation"] | BOTH}
    one, other = job(work, "SiT", **changes), job(work, "FiT", **changes)
    perform(one, nothing)
    perform(other, nothing)
    square = ["square, unguided", "square, guidance 1.5"]
    assert list(read_record(one.record).final) == square and one.sheet.is_file()
    assert list(read_record(other.record).final) == [*square, "own, unguided", "own, guidance 1.5"]
    rows = final_rows({"SiT": {0: read_record(one.record)}, "FiT": {0: read_record(other.record)}}, "distance")
    assert [cell == "-" for cell in rows[0]] == [False, False, False, False, True, True]


def test_further_conditions_are_scored_where_a_model_can_meet_them(work):
    changes = {"variants": TREE["variants"] | {"SiT": SIT}, "evaluation": TREE["evaluation"] | BOTH}
    changes["evaluation"] |= {"conditions": FURTHER, "guidance": [1.5], "points": []}
    resized = "own at 24x16, unguided, vision-ntk, attention scale paper"
    solved, square = "square, unguided, 3 steps of heun", "own at 20x20"
    found = {}
    for variant in ("FiT", "FiTv2", "SiT"):
        one = job(work, variant, **changes)
        perform(one, nothing)
        found[variant] = read_record(one.record)
    names = ["square, guidance 1.5", "own, guidance 1.5"]
    assert list(found["FiTv2"].final) == [*names, resized, solved, f"{square}, guidance 2"]
    assert list(found["FiT"].final) == [*names, resized, f"{square}, guidance 2"]
    assert list(found["SiT"].final) == [names[0], solved, f"{square}, guidance 2"]
    assert found["FiTv2"].evaluations[solved] == 6 and found["FiTv2"].evaluations[resized] == 1
    assert len({scores["distance"] for scores in found["FiTv2"].final.values()}) == 5
    config = build_model_config(one.study.recipe_of("FiTv2", 0), garments(60, max_tokens=25))
    rope = one.study.evaluation.sampling(one.study.evaluation.conditions[0], config).rope
    assert (rope.method, rope.per_axis, rope.train_side, rope.attention) == ("ntk-aware", True, 5, "paper")
    write_real(one)
    assert list(read_real(one).places) == ["square", "own", "own at 24x16", "own at 20x20"]
    assert "own at 24x16" in "".join(page(load_report([one], "again"), [], one.out))


def test_what_changes_pictures_is_scored_anew_and_what_does_not_is_not(work):
    one = job(work, evaluation=TREE["evaluation"] | {"conditions": FURTHER[1:2]})
    perform(one, nothing)
    faster = [FURTHER[1] | {"sampler": {"solver": "heun", "steps": 2}}]
    other = job(work, evaluation=TREE["evaluation"] | {"conditions": faster})
    assert not other.is_done() and other.folder == one.folder
    told = []
    perform(other, lambda *message: told.append(message[1]))
    assert told == [20, 40, 70, 100, *range(101, 131)]
    assert other.is_done() and not one.is_done()


def test_a_model_is_asked_for_the_shapes_of_the_view_whatever_it_was_trained_on(work, monkeypatch):
    sizes = []

    def look(extractor, images, *rest):
        images = list(images)
        sizes.append({image.size for image in images})
        return summarise(extractor, images, *rest)

    monkeypatch.setattr(scoring, "summarise", look)
    one = job(work, evaluation=TREE["evaluation"] | BOTH | {"points": [], "guidance": [1.5]})
    perform(one, nothing)
    of_curve, square, own = sizes
    real = {image.size for image in load_views(one.study, 1, one.references)["own"].images(None)}
    assert of_curve == square == {(20, 20)} and len(own) > 5 and own <= real


def test_a_model_is_loaded_once(work, monkeypatch):
    one, loaded = job(work), []
    monkeypatch.setattr(scoring, "load_pretrained", lambda path: loaded.append(path.name) or load_pretrained(path))
    perform(one, nothing)
    assert loaded == ["step-00000002", "step-00000004"]


def test_real_pictures_are_cut_to_the_size_and_seen_once(work, monkeypatch):
    one = job(work)
    view = load_views(one.study, 1, one.references)["square"]
    assert {image.size for image in view.images((12, 8))} == {(8, 12)}
    seen = view.seen((12, 8))
    with monkeypatch.context() as patched:
        patched.setattr(views, "summarise", None)
        again = load_views(one.study, 1, one.references)["square"]
        assert again.seen((12, 8)).pooled.equal(seen.pooled)
        with pytest.raises(TypeError):
            again.seen(None)
    # The folders are in the order of the alphabet, the classes of the extractor are not.
    assert view.classes.tolist() == [CLASSES.index(name) for name in sorted(CLASSES)]
    agreeing = sum(CLASSES[c] == sorted(CLASSES)[label] for c, label in zip(seen.classes, seen.labels, strict=True))
    assert recognised(seen, view.classes) == pytest.approx(agreeing / 60)


def test_the_share_that_is_cut_is_that_of_the_central_square(work):
    sizes = [Image.open(path).size for path in home().rglob("*.png")]
    cut = [1 - min(size) / max(size) for size in sizes]
    square, own = load_views(job(work, evaluation=TREE["evaluation"] | BOTH).study, 1, work).values()
    assert square.cut == pytest.approx((sum(cut) / 60, max(cut))) and own.cut == (0, 0)


def test_only_pictures_with_both_sides_above_the_square_of_the_budget_can_be_cropped():
    sizes, labels = np.array([[40, 12], [8, 8], [40, 8]]), np.array([0, 0, 1])
    dataset = SimpleNamespace(sizes=sizes, class_names=["a", "b"], epoch=lambda *_: SimpleNamespace(labels=labels))
    assert croppable(dataset, FashionSettings(source="fashion", max_tokens=4), 4) == {"a": 0.5, "b": 0}
    assert croppable(SimpleNamespace(), FashionSettings(source="fashion"), 4) is None


def test_real_pictures_score_as_many_of_each_class_against_the_others(work):
    one = job(work)
    write_real(one)
    (place,) = read_real(one).places.values()
    seen = load_views(one.study, 1, one.references)["square"].seen(None)
    by_class = {label: [] for label in range(10)}
    for index in numpy_generator(Purpose.SPLITS, 1).permutation(60).tolist():
        by_class[int(seen.labels[index])].append(index)
    drawn = [index for of_class in by_class.values() for index in of_class[: min(3, len(of_class) // 2)]]
    halves = (Statistics.of(seen.pooled[part]) for part in (sorted(drawn), sorted(set(range(60)) - set(drawn))))
    # 60 images of 64 features: the root of a matrix of deficient rank resolves half of a float64's digits.
    assert place.draws[1]["distance"] == pytest.approx(frechet_distance(*halves), rel=1e-7)
    assert len(place.draws) == 10 and set(place.draws[0]) == set(SCORES) - {"recognised"}
    one.real.write_text("{")
    with pytest.raises(ValueError, match=r"real\.json is damaged"):
        read_real(one)
    write_real(one)
    assert read_real(one).places == {"square": place}
    assert read_real(job(work, evaluation=TREE["evaluation"] | {"final_images": 20})) is None


def test_another_extractor_names_no_classes_that_it_does_not_know(work, tmp_path):
    few = {"extractor": "efficientnet-lite0", "images": 6, "final_images": 6, "points": [], "guidance": [1.5]}
    named = job(work, evaluation=TREE["evaluation"] | few)
    assert named.settings["extractor_sha256"] != job(work).settings["extractor_sha256"]
    assert load_views(named.study, 1, work)["square"].classes is None
    one = job(work, evaluation=TREE["evaluation"] | few | {"views": {"square": some_pictures(tmp_path, 12)}})
    perform(one, nothing)
    write_real(one)
    (scores,) = read_record(one.record).final.values()
    assert scores["recognised"] is None and scores["distance"] > 0
    assert read_real(one).places["square"].recognised is None
    text = "\n".join(page(load_report([one], "again"), [], one.out))
    assert "FD-ENLite0" in text and "Share recognised" not in text


def some_pictures(tmp_path: Path, number: int) -> dict:
    """A view of some of the pictures, without their classes."""
    folder = tmp_path / "some"
    folder.mkdir()
    for path in sorted(home().rglob("*.png"))[:number]:
        shutil.copy(path, folder)
    return SQUARE | {"data.source": str(folder)}


def test_models_of_latents_are_compared_with_the_pictures_of_a_folder(tmp_path, monkeypatch):
    root, vae, latents = write_files(tmp_path / "root", good_files(12)), tmp_path / "vae", tmp_path / "latents"
    tiny_autoencoder().save_pretrained(vae)
    encoder, preparation = build_encoder(str(vae), 16, 2, "mixed", False, None, "cpu")
    state = join_processes("cpu")
    prepare(FolderSource(root), "pictures", latents, encoder, preparation, 5, 2, state, image_progress)
    recipe = {"data": {"source": str(latents)}, "model": {"patch_size": 2}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    folder = {"data.source": str(root), "data.max_tokens": 16, "data.flip": False, "data.preprocessing": "resize"}
    few = {"points": [], "images": 4, "final_images": 6, "guidance": [1.5], "point": {"view": "own", "guidance": 1.5}}
    changes = {"recipe": str(tmp_path / "recipe.yaml"), "set": TREE["set"] | {"model.heads": 2}}
    one = job(tmp_path / "work", **changes, evaluation=few | {"views": {"own": folder}})
    seen = []

    def look(extractor, images, *rest):
        seen.extend(images := list(images))
        return summarise(extractor, images, *rest)

    monkeypatch.setattr(scoring, "summarise", look)
    perform(one, nothing)
    write_real(one)
    view = load_views(one.study, 8, one.references)["own"]
    assert {image.size for image in seen} <= {image.size for image in view.images(None)}
    assert all(side % 16 == 0 for image in seen for side in image.size)
    (scores,) = read_record(one.record).final.values()
    assert scores["distance"] > 0 and scores["recognised"] is None and one.sheet.is_file()
    only = job(tmp_path / "work", **changes, evaluation=few | {"views": {"own": {}}})
    with pytest.raises(ValueError, match="the view own holds latents"):
        perform(only, nothing)


def test_too_few_real_pictures_are_refused(work, tmp_path):
    one = job(work, evaluation=TREE["evaluation"] | {"views": {"square": some_pictures(tmp_path, 11)}})
    with pytest.raises(ValueError, match="square has 11 pictures, and a study compares with 12 at least"):
        perform(one, nothing)


def test_a_view_of_other_classes_is_refused(work, tmp_path):
    shutil.copytree(home() / "pictures", tmp_path / "renamed")
    (tmp_path / "renamed/bag").rename(tmp_path / "renamed/zebra")
    view = SQUARE | {"data.source": str(tmp_path / "renamed")}
    one = job(work, evaluation=TREE["evaluation"] | {"views": {"square": view}})
    with pytest.raises(ValueError, match="the view square has other classes than the training"):
        perform(one, nothing)


@pytest.mark.parametrize(
    ("variant", "changes", "complaint"),
    [
        ("FiT", {"conditions": [{"view": "square", "guidance": 1, "size": "22x20"}]}, "22x20 is not divisible"),
        ("SiT", BOTH | {"point": {"view": "own", "guidance": 1.5}}, "SiT cannot make the pictures of 'own, guidance 1"),
    ],
)
def test_pictures_that_cannot_be_made_are_refused_before_training(work, variant, changes, complaint):
    evaluation = TREE["evaluation"] | changes
    one = job(work, variant, variants=TREE["variants"] | {"SiT": SIT}, evaluation=evaluation)
    with pytest.raises(ValueError, match=complaint):
        perform(one, nothing)
    assert not (one.folder / "log.jsonl").exists()


def test_what_is_scored_is_not_scored_again_nor_trained(work):
    one = job(work)
    perform(one, nothing)
    one.record.unlink()
    (damaged,) = one.folder.glob("seen/step-00000002/*.safetensors")
    damaged.write_text("{")
    told = []
    perform(one, lambda *message: told.append(message))
    assert [what for what, _, _ in told if what == "training"] == []
    # Twenty pictures of the damaged one, one by one, and three scores that are there.
    assert [done for _, done, _ in told] == [*range(1, 21), 40, 70, 100]
    assert load_file(damaged)["pooled"].shape == (20, 64)


def test_pictures_that_are_not_finite_are_recorded_as_without_score(work, monkeypatch):
    one = job(work)
    with monkeypatch.context() as patched:
        patched.setattr(scoring, "generate", lambda model, wishes, *_: [torch.full((1, 4, 4), math.nan)] * len(wishes))
        perform(one, nothing)
    found = read_record(one.record)
    assert {scores["distance"] for scores in found.final.values()} == {None} and found.failed and not found.diverged
    one.record.unlink()
    perform(one, nothing)  # Nothing is remembered of them.
    assert None not in read_record(one.record).final["square, unguided"].values()


def test_other_evaluation_settings_score_the_same_training(work):
    one, other = job(work), job(work, evaluation=TREE["evaluation"] | {"images": 40})
    perform(one, nothing)
    assert not other.is_done() and other.folder == one.folder
    told = []
    perform(other, lambda *message: told.append(message))
    # Forty pictures for each point, one by one; the scores of the end are those of before.
    assert told == [("scoring", done, 140) for done in (*range(1, 81), 110, 140)]
    assert other.is_done() and not one.is_done()

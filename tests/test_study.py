"""Studies end to end with tiny networks: every run once, stopped and continued, damaged and remade, and reported."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from accelerate import PartialState
from PIL import Image
from safetensors.torch import load_file

from fitv2.build import build_dataset, build_model_config
from fitv2.cli.progress import image_progress
from fitv2.cli.study import Chosen
from fitv2.cli.study import perform as perform_all
from fitv2.config import load_recipe
from fitv2.evaluation.frechet import Statistics, frechet_distance
from fitv2.evaluation.summary import summarise
from fitv2.hashes import json_digest
from fitv2.model.cost import parameters
from fitv2.prepare.run import prepare
from fitv2.prepare.settings import build_encoder
from fitv2.prepare.sources import FolderSource
from fitv2.pretrained import load_pretrained
from fitv2.study import scoring, views
from fitv2.study.circumstances import scale_lines
from fitv2.study.commit import code_commit
from fitv2.study.definition import Run, build_study, load_study, shortened, study_names
from fitv2.study.home import refuse_another
from fitv2.study.job import Job
from fitv2.study.one_run import perform
from fitv2.study.page import page
from fitv2.study.plan import plans
from fitv2.study.real import read_real, write_real
from fitv2.study.record import read_record
from fitv2.study.report import load_report, read_records, write_report
from fitv2.study.runner import next_of
from fitv2.study.scoring import SCORES, recognised
from fitv2.study.snapshots import TrainingLog
from fitv2.study.tables import final_rows
from fitv2.study.views import load_views
from fitv2.training.preemption import STOPPED
from pictures import good_files, write_files
from tiny import CLASSES, command_line, garments, process, tiny_autoencoder

SQUARE, OWN = {"data.preprocessing": "crop"}, {"data.preprocessing": "resize"}
TREE = {
    "title": "A title",
    "question": "A question?",
    "recipe": "that of the fixture",
    "set": {
        **{"model.width": 16, "model.depth": 1, "training.steps": 4, "training.tokens_per_pack": 256},
        **{"training.warmup_steps": 0, "training.precision": "no"},
    },
    "seeds": 2,
    "variants": {
        "FiT": {"about": "the first", "set": {"model.architecture": "FiT"}},
        "FiTv2": {"about": "the second"},
    },
    "evaluation": {
        **{"points": [2], "images": 20, "final_images": 30, "views": {"square": SQUARE}},
        "samplers": {"velocity": {"solver": "euler", "steps": 1}, "noise": {"solver": "ddim", "steps": 1}},
    },
    "claims": [
        {
            "text": "faster",
            "paper": "2 times",
            "measure": {"kind": "speed-up", "baseline": "FiT", "contender": "FiTv2", "at_least": 2},
        },
        {"text": "better", "paper": "yes", "measure": {"kind": "difference", "of": "FiTv2", "to": "FiT"}},
    ],
    "imagenet": "Elsewhere.",
}
BOTH = {"views": {"square": SQUARE, "own": OWN}}
CLOCK = ("seconds", "cpu_seconds")


def tree(**changes) -> dict:
    return TREE | changes


def nothing(what: str, done: int, total: int) -> None:
    """Nobody is told."""


@pytest.fixture(scope="module", autouse=True)
def pictures(tmp_path_factory) -> Path:
    """A folder of sixty grey pictures, a folder a class, and the recipe of all studies here, which names it."""
    home = tmp_path_factory.mktemp("pictures")
    made = garments(60)
    for number, (picture, label) in enumerate(zip(made.pictures, made.labels, strict=True)):
        folder = home / "pictures" / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{number:02d}.png")
    recipe = load_recipe("fashion-study").model_dump(mode="json", exclude={"data"}, exclude_defaults=True)
    data = {"source": str(home / "pictures"), "channels": 1, "max_tokens": 25, "flip": False}
    (home / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"data": data}))
    TREE["recipe"] = str(home / "recipe.yaml")
    return home / "pictures"


@pytest.fixture
def work(tmp_path) -> Path:
    """The folder of trainings."""
    return tmp_path / "work"


def job(work: Path, variant: str = "FiTv2", seed: int = 0, **changes) -> Job:
    study = build_study(tree(**changes), "tiny")
    run = Run(variant, seed, study.recipe_of(variant, seed))
    return Job("tiny", study, run, work.parent / "studies/tiny", work)


def without_clock(path: Path) -> dict:
    record = read_record(path).model_dump(mode="json")
    record["points"] = [{k: v for k, v in point.items() if k not in CLOCK} for point in record["points"]]
    return record


@pytest.fixture
def definition(tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree()))
    return path


def options(work: Path) -> list:
    return ["--out", work.parent / "studies", "--work", work, "--jobs", 2]


def test_a_study_runs_once_and_its_report_comes_from_its_records(fitv2, definition, work):
    code, printed = fitv2("study", definition, *options(work))
    assert code == 0 and "better" in printed
    folder = work.parent / "studies/tiny"
    records = sorted(folder.glob("runs/*.json"))
    assert [path.stem for path in records] == ["FiT-seed0", "FiT-seed1", "FiTv2-seed0", "FiTv2-seed1"]
    assert sorted(path.stem for path in folder.glob("sheets/*.png")) == ["FiT", "FiTv2"]
    made = {path: path.read_bytes() for path in folder.parent.rglob("*") if path.suffix in (".md", ".json")}
    times = [path.stat().st_mtime_ns for path in records]
    assert fitv2("study", definition, *options(work))[0] == 0
    assert [path.stat().st_mtime_ns for path in records] == times
    for path in made.keys() - {*records, folder / "real.json"}:
        path.unlink()
    for number in list(work.iterdir()):
        number.rename(number.with_name(f"gone-{number.name}"))
    code, printed = fitv2("study", definition, *options(work), "--report", "--json")
    assert code == 0 and {path: path.read_bytes() for path in made} == made
    assert [claim["text"] for claim in json.loads(printed)["claims"]] == ["faster", "better"]
    written = (folder / "README.md").read_text()
    assert all(name in written for name in ("Elsewhere.", "A question?", "curves.png", "sheets/FiTv2.png", "square"))
    assert all((folder / name).is_file() for name in re.findall(r"\]\((\S+\.png)\)", written))
    # The page names a copy of the file, and that is the same study.
    command = shlex.split(re.search(r"Command: `fitv2 (.*?)`", written)[1])
    assert command == ["study", str(folder / "tiny.yaml"), "--out", str(folder.parent)]
    assert (folder / "tiny.yaml").read_text() == definition.read_text()
    assert fitv2(*command, "--work", work, "--report")[0] == 0 and (folder / "README.md").read_text() == written
    assert written.count("| real pictures |") == 3 and "of real pictures are recognised" in written
    overview = (folder.parent / "README.md").read_text()
    assert "[tiny](tiny/README.md): faster" in overview
    told = next(line for line in overview.splitlines() if line.startswith("| [tiny](tiny/README.md) |"))
    assert "60 pictures of 10 classes" in told and "4 steps" in told and "FD-garments" in told and "CPU" in told
    small = next(line for line in written.splitlines() if "**Small**" in line)
    parameters = [read_record(path).cost["parameters"] / 1e6 for path in records]
    assert f"{min(parameters):.3g} to {max(parameters):.3g} million parameters" in small and "epochs" in small
    assert "1 steps of ddim where a network predicts noise" in written and "objective and sampler together" in written


def test_a_record_says_what_the_run_took(work):
    one = job(work)
    perform(one, nothing)
    record = read_record(one.record)
    assert [point.step for point in record.points] == [2, 4] and not record.diverged and one.is_done()
    assert list(record.final) == [c.name for c in one.study.evaluation.final] and len(record.final) == 2
    assert all(math.isfinite(score["distance"]) for score in record.final.values())
    lines = [json.loads(line) for line in (one.folder / "log.jsonl").read_text().splitlines()]
    assert record.last.images == sum(line["images"] for line in lines)
    assert record.last.seconds == pytest.approx(sum(x["tokens"] / x["tokens_per_second"] for x in lines), abs=1e-3)
    assert record.last.flops == 4 * record.cost["flops_per_step"]
    assert record.evaluations == {c.name: 1 if c.guidance == 1 else 2 for c in one.study.evaluation.final}


def test_a_commit_is_known_of_a_checkout_alone(tmp_path, monkeypatch):
    package = tmp_path / "src/package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()

    def git(*arguments: str) -> str:
        who = ("-c", "user.name=x", "-c", "user.email=x@x")
        command = ["git", *who, *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    assert code_commit(package) is None
    git("init", "-q")
    assert code_commit(package) is None  # Nothing is under its control yet.
    git("add", ".")
    assert code_commit(package) is None  # Nor is there a commit.
    git("commit", "-q", "-m", "x")
    commit = git("rev-parse", "HEAD").strip()[:12]
    assert code_commit(package) == commit
    (tmp_path / "notes").touch()
    assert code_commit(package) == commit  # It is none of the package's.
    (package / "__init__.py").write_text("x = 1")
    assert code_commit(package) == f"{commit}, changed"
    installed = tmp_path / "venv/package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    assert code_commit(installed) is None  # Within another project.
    monkeypatch.setenv("PATH", "")
    assert code_commit(package) is None


def test_a_run_that_was_stopped_gives_the_same_record(work, tmp_path):
    whole, stopped = job(work), job(tmp_path / "other")
    perform(whole, nothing)
    expected = without_clock(whole.record)
    whole.record.unlink()
    for phase, when in (("training", 3), ("scoring", 25), ("scoring", 80)):

        def stop(what: str, done: int, total: int, phase=phase, when=when) -> None:
            if what == phase and done >= when:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            perform(stopped, stop)
        assert not stopped.record.is_file()
    perform(stopped, nothing)
    assert without_clock(stopped.record) == expected


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


FURTHER = [
    {"view": "own", "guidance": 1, "size": "24x16", "extrapolation": "vision-ntk"},
    {"view": "square", "guidance": 1, "sampler": {"solver": "heun", "steps": 3}},
    {"view": "own", "guidance": 2, "size": "20x20"},
]
SIT = {"about": "a grid", "set": {"model.architecture": "SiT", "data.preprocessing": "crop"}}


def test_further_conditions_are_scored_where_a_model_can_meet_them(work):
    changes = {"variants": TREE["variants"] | {"SiT": SIT}, "evaluation": TREE["evaluation"] | BOTH}
    changes["evaluation"] |= {"conditions": FURTHER, "guidance": [1.5], "points": []}
    resized, solved, square = "own at 24x16, unguided, vision-ntk", "square, unguided, 3 steps of heun", "own at 20x20"
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
    assert (rope.method, rope.per_axis, rope.train_side) == ("ntk-aware", True, 5)
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


def test_the_share_that_is_cut_is_that_of_the_central_square(work, pictures):
    sizes = [Image.open(path).size for path in pictures.rglob("*.png")]
    cut = [1 - min(size) / max(size) for size in sizes]
    square, own = load_views(job(work, evaluation=TREE["evaluation"] | BOTH).study, 1, work).values()
    assert square.cut == pytest.approx((sum(cut) / 60, max(cut))) and own.cut == (0, 0)


def test_real_pictures_score_as_many_of_them_against_the_others(work):
    one = job(work)
    write_real(one)
    (place,) = read_real(one).places.values()
    seen = load_views(one.study, 1, one.references)["square"].seen(None)
    order = torch.from_numpy(np.random.default_rng(1).permutation(60))
    halves = (Statistics.of(seen.pooled[part]) for part in (order[:30], order[30:]))
    assert place.draws[1]["distance"] == pytest.approx(frechet_distance(*halves), rel=1e-9)
    assert len(place.draws) == 3 and set(place.draws[0]) == set(SCORES) - {"recognised"}
    one.real.write_text("{")
    with pytest.raises(ValueError, match=r"real\.json is damaged"):
        read_real(one)
    write_real(one)
    assert read_real(one).places == {"square": place}
    assert read_real(job(work, evaluation=TREE["evaluation"] | {"final_images": 20})) is None


def test_another_extractor_names_no_classes_that_it_does_not_know(work):
    few = {"extractor": "efficientnet-lite0", "images": 6, "final_images": 6, "points": [], "guidance": [1.5]}
    one = job(work, evaluation=TREE["evaluation"] | few)
    assert one.settings["extractor_sha256"] != job(work).settings["extractor_sha256"]
    perform(one, nothing)
    write_real(one)
    scores = read_record(one.record).final["square, guidance 1.5"]
    assert (
        scores["recognised"] is None and scores["distance"] > 0 and read_real(one).places["square"].recognised is None
    )
    text = "\n".join(page(load_report([one], "again"), [], one.out))
    assert "FD-ENLite0" in text and "Share recognised" not in text


def test_models_of_latents_are_compared_with_the_pictures_of_a_folder(tmp_path, monkeypatch):
    root, vae, latents = write_files(tmp_path / "root", good_files(12)), tmp_path / "vae", tmp_path / "latents"
    tiny_autoencoder().save_pretrained(vae)
    encoder, preparation = build_encoder(str(vae), 16, 2, "mixed", False, None, "cpu")
    state = PartialState(cpu=True)
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


def test_too_few_real_pictures_are_refused(work, tmp_path, pictures):
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(pictures.rglob("*.png"))[:11]:
        shutil.copy(path, few)
    one = job(work, evaluation=TREE["evaluation"] | {"views": {"square": SQUARE | {"data.source": str(few)}}})
    with pytest.raises(ValueError, match="square has 11 pictures, and a study compares with 12 at least"):
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


def test_unequal_learning_rates_are_told(work):
    variants = {"FiT": {"about": "x", "set": {"training.learning_rate": 1e-4}}, "FiTv2": {"about": "y"}}
    for variant in variants:
        perform(job(work, variant, variants=variants, claims=[]), nothing)
    told = list(scale_lines(load_report([job(work, v, variants=variants, claims=[]) for v in variants], "again")))
    assert any("0.0015, and 0.0001 for FiT;" in line or "0.0001, and 0.0015 for FiTv2;" in line for line in told)


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
    found = without_clock(one.record)
    assert {scores["distance"] for scores in found["final"].values()} == {None} and not found["diverged"]
    one.record.unlink()
    perform(one, nothing)  # Nothing is remembered of them.
    assert None not in without_clock(one.record)["final"]["square, unguided"].values()


def test_other_evaluation_settings_score_the_same_training(work):
    one, other = job(work), job(work, evaluation=TREE["evaluation"] | {"images": 40})
    perform(one, nothing)
    assert not other.is_done() and other.folder == one.folder
    told = []
    perform(other, lambda *message: told.append(message))
    # Forty pictures for each point, one by one; the scores of the end are those of before.
    assert told == [("scoring", done, 140) for done in (*range(1, 81), 110, 140)]
    assert other.is_done() and not one.is_done()


def test_a_training_that_diverges_is_a_result(work):
    steps = TREE["set"] | {"training.steps": 120, "training.learning_rate": 1e30, "model.qk_norm": False}
    one = job(work, set=steps, evaluation=TREE["evaluation"] | {"points": [60]})
    perform(one, nothing)
    record = read_record(one.record)
    assert record.diverged and record.final == {} and record.skipped > 90 and one.is_done()
    told = []
    one.record.unlink()
    perform(one, lambda what, *_: told.append(what))
    assert "training" not in told and read_record(one.record).diverged


@pytest.mark.parametrize("damage", ["{", '{"study": "tiny"}'])
def test_a_damaged_record_is_a_sentence_and_made_again(work, damage):
    one = job(work)
    perform(one, nothing)
    whole = without_clock(one.record)
    one.record.write_text(damage)
    with pytest.raises(ValueError, match=r"FiTv2-seed0\.json is damaged"):
        read_records([one])
    perform(one, nothing)
    assert without_clock(one.record) == whole


def test_records_of_other_settings_are_left_out_and_named(work, caplog):
    one = job(work)
    perform(one, nothing)
    changed = job(work, set=TREE["set"] | {"training.learning_rate": 1e-4})
    assert read_records([changed]) == {"FiT": {}, "FiTv2": {}}
    assert "FiTv2-seed0.json is of other settings" in caplog.text


def test_two_files_of_one_name_do_not_share_their_results(fitv2, definition, work, tmp_path):
    kept = work.parent / "studies/tiny/tiny.yaml"
    kept.parent.mkdir(parents=True)
    kept.write_text(definition.read_text())
    other = tmp_path / "elsewhere/tiny.yaml"
    other.parent.mkdir()
    other.write_text(yaml.safe_dump(tree(title="Another title")))
    for extra in ((), ("--report",), ("--dry-run",)):
        complaint, _ = fitv2("study", other, *options(work), *extra)
        assert "studies/tiny holds results of another study, 'A title', of a file tiny.yaml" in complaint
    complaint, _ = fitv2("study", definition, other, "--out", tmp_path / "new")
    assert "two of these studies would have their results in" in complaint


def test_a_file_named_as_a_shipped_study_is_not_that_study(tmp_path):
    (tmp_path / "convergence/runs").mkdir(parents=True)
    shipped = load_study("convergence")
    refuse_another(tmp_path / "convergence", "convergence", shipped, None)
    with pytest.raises(ValueError, match="'convergence', which ships with the package"):
        refuse_another(tmp_path / "convergence", "convergence", shipped, Path("convergence.yaml"))
    (tmp_path / "convergence/convergence.yaml").write_text(yaml.safe_dump({"title": shipped.title}))
    with pytest.raises(ValueError, match="of a file convergence"):
        refuse_another(tmp_path / "convergence", "convergence", shipped, None)


def test_several_studies_are_one_queue_and_each_has_its_report(fitv2, definition, work, tmp_path):
    """What they share is trained once."""
    other = tmp_path / "other.yaml"
    variants = {"again": {"about": "the same as the second"}, "third": {"about": "x", "set": {"model.heads": 1}}}
    other.write_text(yaml.safe_dump(tree(title="Second", variants=variants, claims=[])))
    code, printed = fitv2("study", definition, other, *options(work), "--seeds", 1, "--json")
    assert code == 0 and [result["study"] for result in json.loads(printed)] == ["tiny", "other"]
    assert all((work.parent / "studies" / name / "README.md").is_file() for name in ("tiny", "other"))
    assert len(list(work.glob("*/log.jsonl"))) == 3  # Of four runs.


def test_runs_of_the_first_seed_come_first_and_equal_ones_not_at_once(monkeypatch):
    queue = [SimpleNamespace(folder=folder) for folder in ("a", "a", "b")]
    assert next_of(queue, []) is queue[0]
    assert next_of(queue[1:], [SimpleNamespace(job=queue[0])]) is queue[2]
    assert next_of(queue[1:2], [SimpleNamespace(job=queue[0])]) is None
    labels = []
    monkeypatch.setattr("fitv2.study.runner.unfinished", lambda jobs: jobs)
    monkeypatch.setattr("fitv2.study.runner.run_all", lambda jobs, *_: labels.extend(j.label for j in jobs) or [])
    monkeypatch.setattr("fitv2.study.real.write_real", lambda _: None)
    studies = {name: build_study(tree(), name) for name in ("x", "y")}
    chosen = [
        Chosen(name, None, Path(name), "", False, [Job(name, one, run, Path(), Path()) for run in one.runs(2)])
        for name, one in studies.items()
    ]
    perform_all(chosen, 1)
    assert labels == [f"{name}/{v}-seed{seed}" for seed in range(2) for name in "xy" for v in ("FiT", "FiTv2")]


def test_a_plan_counts_only_what_a_model_can_make(work):
    """Of two views, a grid makes its square alone."""
    changes = {"variants": {"SiT": SIT}, "claims": []}
    flops = [
        plans([job(work, "SiT", **changes, evaluation=TREE["evaluation"] | views)])["SiT-seed0"]["flops"]
        for views in (BOTH, {"views": {"square": SQUARE}}, {"guidance": [1.5]})
    ]
    assert flops[0] == flops[1] > flops[2] > 0


def test_a_run_that_fails_does_not_stop_the_others(fitv2, work, tmp_path):
    variants = TREE["variants"] | {"broken": {"about": "no such heads", "set": {"model.heads": 3}}}
    path = tmp_path / "some.yaml"
    path.write_text(yaml.safe_dump(tree(variants=variants, seeds=1)))
    code, printed = fitv2("study", path, *options(work), "--json")
    assert code == 1
    (failure,) = json.loads(printed)["failures"]
    assert "broken-seed0 failed: width 16 with 3 heads" in failure
    output = Path(re.search(r"see (\S+output\.txt)", failure)[1])
    assert "Traceback" in output.read_text()
    assert json.loads(printed)["runs"] == {"FiT": [0], "FiTv2": [0], "broken": []}


def test_sigterm_stops_all_and_the_same_command_continues(fitv2, definition, work):
    content = yaml.safe_load(definition.read_text())
    content["set"]["training.steps"] = 100
    content["evaluation"]["points"] = [50]
    definition.write_text(yaml.safe_dump(content))
    arguments = ["study", definition, "--seeds", 1, *options(work)]
    child = process(command_line, *map(str, arguments))
    deadline = time.monotonic() + 60
    while len(list(work.glob("*/log.jsonl"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    child.terminate()
    child.join(60)
    assert child.exitcode == STOPPED
    # Each saved the step that it had reached, before its first point.
    saved = [int(path.name.removeprefix("step-")) for path in work.glob("*/checkpoints/step-*")]
    assert len(saved) == 2 and all(0 < step < 50 for step in saved)
    assert fitv2(*arguments)[0] == 0
    for folder in work.glob("*/log.jsonl"):
        assert len(TrainingLog(folder.parent).images) == 100
        assert "continuing from" in (folder.parent / "output.txt").read_text()


def test_a_trial_is_stamped_and_apart(fitv2, definition, work):
    assert fitv2("study", definition, *options(work), "--budget", 0.5, "--seeds", 1)[0] == 0
    folder = work.parent / "studies"
    assert not (folder / "tiny").exists() and not (folder / "README.md").exists()
    assert "A trial" in (folder / "trials/tiny-0.5/README.md").read_text()
    assert [p.step for p in read_record(folder / "trials/tiny-0.5/runs/FiT-seed0.json").points] == [1, 2]


def test_a_plan_lists_every_run_and_runs_none(fitv2, definition, work):
    code, printed = fitv2("study", definition, *options(work), "--dry-run", "--json")
    plan = json.loads(printed)
    assert code == 0 and list(plan["runs"]) == ["FiT-seed0", "FiTv2-seed0", "FiT-seed1", "FiTv2-seed1"]
    assert all(run["parameters"] > 0 and run["flops"] > 0 for run in plan["runs"].values())
    assert plan["left"] == sorted(plan["runs"]) and plan["hours"] > 0
    assert not (work.parent / "studies").exists()


def test_without_a_name_the_studies_are_listed(fitv2):
    code, printed = fitv2("study")
    assert code == 0 and all(name in printed for name in study_names())


def test_a_report_without_results_is_a_sentence(fitv2, definition, work):
    code, _ = fitv2("study", definition, *options(work), "--report")
    assert "no run of the study tiny is done yet" in code


@pytest.mark.parametrize("name", study_names())
def test_every_shipped_study_can_be_run(name):
    """Its settings hold, all variants can be built, and none is twice the size of another."""
    study, sizes, datasets = load_study(name), [], {}
    for variant in study.variants:
        recipe = study.recipe_of(variant, 0)
        key = recipe.data.model_dump_json()
        datasets[key] = datasets.get(key) or build_dataset(recipe.data, recipe.model.patch_size)
        sizes.append(parameters(build_model_config(recipe, datasets[key])))
    assert max(sizes) < 1.25 * min(sizes)


def test_shipped_studies_share_their_runs():
    of = {name: {run.digest: run.variant for run in load_study(name).runs(1)} for name in study_names()}
    assert "FiTv2" in {of["convergence"][digest] for digest in of["convergence"].keys() & of["ablation"].keys()}


def test_all_variants_come_before_the_next_seed():
    runs = build_study(tree(), "tiny").runs(2)
    assert [(run.variant, run.seed) for run in runs] == [("FiT", 0), ("FiTv2", 0), ("FiT", 1), ("FiTv2", 1)]
    assert [run.recipe.training.seed for run in runs] == [0, 0, 1, 1] and len({run.digest for run in runs}) == 4


def test_a_digest_knows_changes_and_not_defaults():
    study = build_study(tree(), "tiny")
    same = build_study(tree(set=TREE["set"] | {"training.clip": 1.0}), "tiny")
    other = build_study(tree(set=TREE["set"] | {"training.clip": 0.5}), "tiny")
    (one, *_), (two, *_), (three, *_) = (s.runs(1) for s in (study, same, other))
    assert one.digest == two.digest != three.digest


def test_a_digest_is_the_hash_of_sorted_json():
    assert json_digest({"b": [1, None], "a": "x"}) == hashlib.sha256(b'{"a": "x", "b": [1, null]}').hexdigest()
    recipe = build_study(tree(recipe="fashion-study"), "tiny").recipe_of("FiT", 0)
    # Trainings that are there are found by it.
    assert Run("FiT", 0, recipe).digest == "65d37b428861ae26"


def test_a_shorter_study_keeps_its_proportions():
    study = shortened(load_study("convergence"), 0.1)
    recipe, whole = study.recipe_of("FiTv2", 0), load_study("convergence").recipe_of("FiTv2", 0)
    assert recipe.training.steps == whole.training.steps / 10
    assert study.evaluation.points == tuple(step // 10 for step in load_study("convergence").evaluation.points)
    assert recipe.training.warmup_steps == whole.training.warmup_steps / 10


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"variants": {}}, "variants"),
        ({"variants": {"a/b": {"about": "x"}}}, "pattern"),
        ({"variants": {"a": {"about": "x"}}}, "'faster' is about FiT, FiTv2, which is no variant"),
        ({"set": {"training.seed": 3}}, "training.seed is set by the study itself"),
        ({"set": {"model.widht": 3}}, "the nearest is 'model.width'"),
        ({"set": {"model.width": "many"}}, "the variant FiT: the recipe does not hold: model.width"),
        ({"recipe": "none"}, "there is no recipe 'none'"),
        ({"evaluation": {"points": [2], "point": {"view": "round", "guidance": 1}}}, "'round, unguided' is none of"),
        ({"evaluation": {"points": [2], "extractor": "eyes"}}, "evaluation.extractor"),
        ({"evaluation": {"points": [2], "conditions": [{"view": "round", "guidance": 1}]}}, "is of no view"),
        ({"evaluation": {"points": [2], "conditions": [{"view": "own", "guidance": 1}]}}, "'own, unguided' is there"),
        ({"evaluation": {"points": [2], "conditions": [FURTHER[0] | {"size": "24"}]}}, "conditions.0.size"),
        ({"evaluation": {"points": [2], "conditions": [FURTHER[0] | {"extrapolation": "x"}]}}, "extrapolation"),
        ({"evaluation": {"points": [2], "samplers": {"noise": {"solver": "ab2", "steps": 2}}}}, "ab2 is not for"),
        ({"evaluation": {"points": [2], "samplers": {"noise": {"solver": "dimm", "steps": 2}}}}, "'dimm'"),
        ({"evaluation": {"points": [2], "samplers": {"velocity": {"solver": "dopri5", "steps": 2}}}}, "its own steps"),
        ({"claims": [{"text": "x", "paper": "y", "measure": {"kind": "guess"}}]}, "claims.0.measure"),
        ({"questoin": "?"}, "questoin"),
    ],
)
def test_a_wrong_definition_is_a_sentence(tmp_path, changes, complaint):
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(tree(**changes)))
    with pytest.raises(ValueError, match=re.escape(complaint)):
        load_study(str(path))


def test_what_is_committed_comes_from_the_records(tmp_path):
    """Tables and verdicts, of each study and of all together; of the plots, only that they can be drawn."""
    committed = Path(__file__).parents[1] / "studies"
    folders = [path.parent for path in committed.glob("*/result.json")]
    for folder in folders:
        study, target = load_study(folder.name), tmp_path / folder.name
        jobs = [Job(folder.name, study, run, folder, tmp_path) for run in study.runs(study.seeds)]
        target.mkdir()
        (target / "sheets").symlink_to(folder / "sheets")
        write_report(load_report(jobs, f"fitv2 study {folder.name}"), target)
    for path in tmp_path.rglob("*.md"):
        assert path.read_text() == (committed / path.relative_to(tmp_path)).read_text(), path.name

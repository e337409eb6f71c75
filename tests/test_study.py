"""Studies end to end with tiny networks: every run once, stopped and continued, damaged and remade, and reported."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fitv2.atomic import write_tensors
from fitv2.build import build_dataset, build_model_config
from fitv2.generate import Sampling
from fitv2.model.cost import parameters
from fitv2.study import one_run
from fitv2.study.definition import Run, build_study, load_study, shortened, study_names
from fitv2.study.one_run import Job, perform
from fitv2.study.record import read_record
from fitv2.study.report import Report, read_records, write_report
from fitv2.study.scoring import SCORES, Reference, curve_scores, examined, features_path, final_scores, load_reference
from fitv2.study.snapshots import TrainingLog
from fitv2.study.tables import final_rows
from fitv2.training.preemption import STOPPED
from tiny import command_line, garments, process, random_model

TREE = {
    "title": "A title",
    "question": "A question?",
    "recipe": "fashion-study",
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
        **{"points": [2], "images": 20, "final_images": 30, "views": {"square": {"data.preprocessing": "crop"}}},
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
CLOCK = ("seconds", "cpu_seconds")


def tree(**changes) -> dict:
    return TREE | changes


def nothing(what: str, done: int, total: int) -> None:
    """Nobody is told."""


@pytest.fixture
def work(tmp_path) -> Path:
    """The folder of trainings, with features of a hundred pictures that nobody took, so that none need to be."""
    study = build_study(tree(evaluation={"points": [2]}), "tiny")
    for view in study.evaluation.views:
        features = torch.rand(100, 64, generator=torch.Generator().manual_seed(0))
        write_tensors(features_path(study.view_recipe(view), tmp_path / "work/references"), {"features": features})
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
    for path in made.keys() - set(records):
        path.unlink()
    for number in list(work.iterdir()):
        number.rename(number.with_name(f"gone-{number.name}"))
    code, printed = fitv2("study", definition, *options(work), "--report", "--json")
    assert code == 0 and {path: path.read_bytes() for path in made} == made
    assert [claim["text"] for claim in json.loads(printed)["claims"]] == ["faster", "better"]
    page = (folder / "README.md").read_text()
    assert all(name in page for name in ("Elsewhere.", "A question?", "curves.png", "sheets/FiTv2.png", "square"))
    assert all((folder / name).is_file() for name in re.findall(r"\]\((\S+\.png)\)", page))
    assert "[tiny](tiny/README.md): faster" in (folder.parent / "README.md").read_text()


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


def test_a_run_that_was_stopped_gives_the_same_record(work, tmp_path):
    whole, stopped = job(work), job(tmp_path / "other")
    (work / "references").parent.mkdir(exist_ok=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/references").symlink_to(work / "references")
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
    sit = {"about": "a grid", "set": {"model.architecture": "SiT", "data.preprocessing": "crop"}}
    views = {"views": {"square": {"data.preprocessing": "crop"}, "own": {"data.preprocessing": "resize"}}}
    changes = {"variants": TREE["variants"] | {"SiT": sit}, "evaluation": TREE["evaluation"] | views}
    one, other = job(work, "SiT", **changes), job(work, "FiT", **changes)
    perform(one, nothing)
    perform(other, nothing)
    square = ["square, unguided", "square, guidance 1.5"]
    assert list(read_record(one.record).final) == square and one.sheet.is_file()
    assert list(read_record(other.record).final) == [*square, "own, unguided", "own, guidance 1.5"]
    rows = final_rows({"SiT": {0: read_record(one.record)}, "FiT": {0: read_record(other.record)}}, "distance")
    assert [cell == "-" for cell in rows[0]] == [False, False, False, False, True, True]


def test_what_is_scored_is_not_scored_again_nor_trained(work):
    one = job(work)
    perform(one, nothing)
    one.record.unlink()
    (damaged,) = one.folder.glob("seen/step-00000002-*.safetensors")
    damaged.write_text("{")
    told = []
    perform(one, lambda *message: told.append(message))
    assert [what for what, _, _ in told if what == "training"] == []
    # Twenty pictures of the damaged one, one by one, and three scores that are there.
    assert [done for _, done, _ in told] == [*range(1, 21), 40, 70, 100]
    assert load_file(damaged)["features"].shape == (20, 64)


def test_pictures_that_are_not_finite_are_recorded_as_without_score(work, monkeypatch):
    one = job(work)
    with monkeypatch.context() as patched:
        patched.setattr(one_run, "examined", lambda *_: None)
        perform(one, nothing)
    found = without_clock(one.record)
    assert {scores["distance"] for scores in found["final"].values()} == {None} and not found["diverged"]
    perform(one, nothing)
    assert without_clock(one.record) == found


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
        ({"claims": [{"text": "x", "paper": "y", "measure": {"kind": "guess"}}]}, "claims.0.measure"),
        ({"questoin": "?"}, "questoin"),
    ],
)
def test_a_wrong_definition_is_a_sentence(tmp_path, changes, complaint):
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(tree(**changes)))
    with pytest.raises(ValueError, match=re.escape(complaint)):
        load_study(str(path))


def test_a_reference_is_taken_once_and_again_when_damaged(tmp_path, monkeypatch):
    from fitv2.study import scoring

    monkeypatch.setattr(scoring, "build_dataset", lambda *_: garments(40))
    recipe = build_study(tree(), "tiny").view_recipe("square")
    first = load_reference(recipe, tmp_path)
    path = features_path(recipe, tmp_path)
    assert first.features.shape == (40, 64) and path.is_file()
    with monkeypatch.context() as patched:
        patched.setattr(scoring, "examine", None)
        assert load_reference(recipe, tmp_path).features.equal(first.features)
    path.write_bytes(b"no tensors")
    assert load_reference(recipe, tmp_path).features.equal(first.features)


def test_wishes_are_balanced_in_real_shapes_and_fixed_by_their_number():
    shapes = [[(4, 8, 30), (8, 4, 10)], [(8, 8, 5)]]
    reference = Reference(torch.zeros(2, 64), shapes)
    wishes = reference.wishes(400, seed=3)
    assert [wish.label for wish in wishes[:4]] == [0, 1, 0, 1]
    assert {wish.size for wish in wishes if wish.label == 1} == {(8, 8)}
    assert sum(wish.size == (4, 8) for wish in wishes) == pytest.approx(150, abs=25)
    assert reference.wishes(10, 3) == wishes[:10] and len({wish.seed for wish in wishes}) == 400
    assert not {w.seed for w in wishes} & {w.seed for w in reference.wishes(400, 4)}


def test_pictures_that_are_not_finite_have_no_score():
    model = random_model()
    with torch.no_grad():
        model.final_layer.linear.bias.fill_(math.nan)
    reference = Reference(torch.rand(100, 64), [[(8, 8, 1)]] * 10)
    assert examined(model, reference.wishes(10, 0), Sampling(steps=1, solver="euler"), lambda _: None) is None
    assert curve_scores(None, reference) == {"distance": None, "recognised": None}
    assert set(final_scores(None, reference).values()) == {None}


def test_scores_of_the_end_have_those_of_the_curve_and_more():
    real = torch.rand(100, 64, generator=torch.Generator().manual_seed(0))
    seen = {"features": real, "classes": torch.zeros(100), "labels": torch.zeros(100)}
    scores = final_scores(seen, Reference(real, [[(8, 8, 1)]] * 10))
    assert set(scores) == set(SCORES) and scores["recognised"] == scores["precision"] == scores["coverage"] == 1
    assert scores["distance"] == pytest.approx(0, abs=1e-9) and abs(scores["kid"]) < 0.01


def test_what_is_committed_comes_from_the_records(tmp_path):
    """Tables and verdicts, of each study and of all together; of the plots, only that they can be drawn."""
    committed = Path(__file__).parents[1] / "studies"
    folders = [path.parent for path in committed.glob("*/result.json")]
    for folder in folders:
        study, target = load_study(folder.name), tmp_path / folder.name
        jobs = [Job(folder.name, study, run, folder, tmp_path) for run in study.runs(study.seeds)]
        target.mkdir()
        (target / "sheets").symlink_to(folder / "sheets")
        write_report(Report(folder.name, study, read_records(jobs), f"fitv2 study {folder.name}"), target)
    for path in tmp_path.rglob("*.md"):
        assert path.read_text() == (committed / path.relative_to(tmp_path)).read_text(), path.name

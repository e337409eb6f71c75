"""Studies end to end with tiny networks: every run once, stopped and continued, damaged and remade, and reported."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from fitv2.cli.study import Chosen
from fitv2.cli.study import perform as perform_all
from fitv2.commit import code_commit
from fitv2.locks import locked
from fitv2.study.circumstances import scale_lines
from fitv2.study.definition import build_study, load_study, shortened, study_names
from fitv2.study.job import Job
from fitv2.study.one_run import perform
from fitv2.study.record import read_record
from fitv2.study.report import load_report, overview, read_records, write_report
from fitv2.study.runner import next_of
from fitv2.study.snapshots import TrainingLog
from fitv2.training.sigterm import STOPPED
from studies import TREE, job, nothing, tree
from tiny import command_line, process

CLOCK = ("seconds", "cpu_seconds")


@pytest.fixture
def work(tmp_path) -> Path:
    """The folder of trainings."""
    return tmp_path / "work"


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


def reported(work: Path) -> list:
    return ["--out", work.parent / "studies", "--report"]


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
    code, printed = fitv2("study", definition, *reported(work), "--json")
    assert code == 0 and {path: path.read_bytes() for path in made} == made
    assert [claim["text"] for claim in json.loads(printed)["claims"]] == ["faster", "better"]
    written = (folder / "README.md").read_text()
    assert all(name in written for name in ("Elsewhere.", "A question?", "curves.png", "sheets/FiTv2.png", "square"))
    assert all((folder / name).is_file() for name in re.findall(r"\]\((\S+\.png)\)", written))
    # The page names a copy of the file, and that is the same study.
    command = shlex.split(re.search(r"Command: `fitv2 (.*?)`", written)[1])
    assert command == ["study", str(folder / "tiny.yaml"), "--out", str(folder.parent)]
    assert (folder / "tiny.yaml").read_text() == definition.read_text()
    assert fitv2(*command, "--report")[0] == 0 and (folder / "README.md").read_text() == written
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


def test_unequal_learning_rates_are_told(work):
    variants = {"FiT": {"about": "x", "set": {"training.learning_rate": 1e-4}}, "FiTv2": {"about": "y"}}
    for variant in variants:
        perform(job(work, variant, variants=variants, claims=[]), nothing)
    told = list(scale_lines(load_report([job(work, v, variants=variants, claims=[]) for v in variants], "again")))
    assert any("0.0015, and 0.0001 for FiT;" in line or "0.0001, and 0.0015 for FiTv2;" in line for line in told)


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
    for given in (options(work), reported(work), [*options(work), "--dry-run"]):
        complaint, _ = fitv2("study", other, *given)
        assert "studies/tiny holds results of another study, 'A title', of a file tiny.yaml" in complaint
    complaint, _ = fitv2("study", definition, other, "--out", tmp_path / "new")
    assert "two of these studies would have their results in" in complaint


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


def test_a_plan_of_several_studies_counts_a_shared_training_once(fitv2, definition, work, monkeypatch):
    monkeypatch.setattr("fitv2.study.plan.speed", lambda *_: (1e9, "made up"))
    other = Path(definition).with_name("other.yaml")
    shutil.copy(definition, other)
    code, printed = fitv2("study", definition, other, *options(work), "--dry-run", "--json", "--jobs", 2)
    first, second = json.loads(printed)
    assert code == 0 and all(run["training_of"] is None for run in first["runs"].values())
    assert {name: run["training_of"] for name, run in second["runs"].items()} == {n: f"tiny/{n}" for n in first["runs"]}
    scoring = sum(run["flops"] - run["training_flops"] for run in second["runs"].values())
    assert first["hours"] == pytest.approx(sum(run["flops"] for run in first["runs"].values()) / 1e9 / 3600 / 2)
    assert second["hours"] == pytest.approx(scoring / 1e9 / 3600 / 2)


def test_a_report_without_results_is_a_sentence(fitv2, definition, work):
    code, _ = fitv2("study", definition, *reported(work))
    assert "no run of the study tiny is done yet" in code


def test_what_is_committed_comes_from_the_records(tmp_path):
    """Tables and verdicts, of each study and of all together; of the plots, only that they can be drawn."""
    committed = Path(__file__).parents[1] / "studies"
    folders = [path.parent for path in committed.glob("*/result.json")]
    assert set(study_names()) <= {folder.name for folder in folders}
    for folder in folders:
        study, target = load_study(folder.name), tmp_path / folder.name
        jobs = [Job(folder.name, study, run, folder, tmp_path) for run in study.runs(study.seeds)]
        target.mkdir()
        (target / "sheets").symlink_to(folder / "sheets")
        write_report(load_report(jobs, f"fitv2 study {folder.name}"), target)
    for path in tmp_path.rglob("*.md"):
        assert path.read_text() == (committed / path.relative_to(tmp_path)).read_text(), path.name


def study_of_before(folder: Path, seeds: int = 3) -> None:
    """What is left of a study with so many seeds."""
    folder.mkdir(parents=True)
    result = {"study": folder.name, "claims": [], "runs": {"FiT": list(range(seeds))}, "title": "A title"}
    (folder / "result.json").write_text(json.dumps(result))


@pytest.mark.parametrize("name", ["README.md", "tiny/README.md", "tiny/result.json", "tiny/curves.png", "tiny/runs/x"])
@pytest.mark.parametrize("option", ["--report", "--dry-run", "--json"])
def test_no_file_is_overwritten_that_no_study_wrote(fitv2, definition, tmp_path, name, option):
    """And nothing is trained before that is said."""
    precious = tmp_path / "mine" / name
    precious.parent.mkdir(parents=True)
    precious.write_text('{"format": 2, "results": []}')
    assert "overwritten" in fitv2("study", definition, "--out", tmp_path / "mine", option)[0]
    assert precious.read_text() == '{"format": 2, "results": []}' and not (tmp_path / "runs").exists()


def test_results_of_others_beside_studies_are_named_and_left_out(tmp_path, caplog):
    study_of_before(tmp_path / "ours")
    for name, content in (("evaluation", '{"format": 2, "results": []}'), ("broken", "{"), ("list", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(content)
    assert any("withdrawn" in line for line in overview(tmp_path))
    assert all(f"{name}/result.json" in caplog.text for name in ("evaluation", "broken", "list"))


def test_fewer_seeds_do_not_replace_a_page_of_more(fitv2, definition, tmp_path):
    study_of_before(tmp_path / "s/tiny", seeds=2)
    before = (tmp_path / "s/tiny/result.json").read_text()
    for option in ("--report", "--dry-run", "--json"):
        assert "2 seeds" in fitv2("study", definition, "--seeds", 1, "--out", tmp_path / "s", option)[0]
    assert (tmp_path / "s/tiny/result.json").read_text() == before


def test_two_studies_do_not_run_in_one_folder(fitv2, definition, work):
    with locked(work.parent / "studies/tiny", "a test"):
        assert "in use" in fitv2("study", definition, *options(work))[0]
    assert not work.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("tiny.yaml", "--report", "--dry-run"),
        ("tiny.yaml", "--report", "--jobs", "2"),
        ("tiny.yaml", "--report", "--work", "w"),
        *(("--" + option, *value) for option, value in [("seeds", "2"), ("out", "x"), ("report", ()), ("dry-run", ())]),
    ],
)
def test_options_without_effect_on_studies_are_refused(fitv2, definition, arguments):
    said = fitv2("study", *arguments)[0]
    assert said.startswith("fitv2: ") and arguments[-2 if arguments[-1] in "2wx" else -1] in said


def test_a_trial_shortens_scoring_as_well():
    """A trial of a fiftieth took hours, nearly all of them for scores."""
    whole, trial = load_study("convergence"), shortened(load_study("convergence"), 0.02)
    assert trial.evaluation.final_images == trial.evaluation.images == 40
    assert shortened(whole, 0.5).evaluation.final_images == whole.evaluation.final_images // 2
    assert shortened(whole, 1).evaluation == whole.evaluation


def test_counts_are_of_one_or_of_many(fitv2):
    out = fitv2("study")[1]
    assert "3 variants, 1 seed\n" in out and "3 seeds" in out

"""`fitv2 study`: with commands made up, and once with real ones."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml

from fitv2.checkpoints.model_folder import load_pretrained, save_pretrained
from fitv2.study.loading import build_study
from fitv2.study.report import reserve
from fitv2.study.runs import Run, runs_of
from studies import TREE, MadeUp, tree
from tiny import command_line, process


@pytest.fixture
def definition(tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree()))
    return path


def test_studies_are_listed_planned_and_chosen(fitv2, definition):
    assert "convergence" in fitv2("study").ok().out
    plan = fitv2("study", definition, "--dry-run", "--json").json
    assert plan["left"] == len(plan["runs"]) == 4 and plan["hours"] > 0
    assert sum(run["seconds"] for run in plan["runs"]) >= 3600 * plan["hours"]
    runs = fitv2("study", definition, "--dry-run", "--json", "--only", "FiT", "--seeds", 3).json["runs"]
    assert [run["run"] for run in runs] == ["FiT, seed 0", "FiT, seed 1", "FiT, seed 2"]
    shown = fitv2("study", "status", definition).ok().out
    assert "4 of 4 training runs are left" in shown and "TFLOP" not in shown
    assert re.search(r"FiT, seed 0 +[\d.]+ minutes +0 % done", shown)
    assert not Path("runs").exists() and not Path("studies").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--only", "DiT"], "DiT"),
        (["--trial", "most"], "most"),
        (["--trial", "5%", "--steps", "2"], "one of them"),
        (["--report"], "nothing to report"),
        (["--report", "--jobs", "2"], "-j"),
    ],
)
def test_a_wrong_command_is_a_sentence(fitv2, definition, arguments, complaint):
    assert complaint in fitv2("study", definition, *arguments).sentence


def test_the_recommendations_of_a_base_model_do_not_change_the_conditions(fitv2, tmp_path):
    changes = {"set": TREE["set"] | {"training.init_from": "builtin:fashion"}}
    changes["evaluation"] = {"conditions": {"own": {"guidance": 2}}}
    study = build_study(tree(**changes), "fine-tuning")
    run = Run(study, "FiTv2", 0)
    builtin = load_pretrained("builtin:fashion")
    advice = {"guidance": 1.8, "interval": [0.3, 0.9], "channels": 8}
    about = (builtin.model.config, builtin.model.state_dict(), builtin.class_names, builtin.shapes, None)
    save_pretrained(tmp_path / "model", *about, recommended=advice)
    words = run.evaluate_command(tmp_path / "model", run.scorings[-1], tmp_path / "o")
    assert "--internal-interval" in words
    fitv2(*words, "--num-images", 2, "--steps", 1, "--metrics", "accuracy").ok()
    (result,) = json.loads((tmp_path / "o/result.json").read_text())["results"]
    sampling = result["stamp"]["sampling"]
    assert (sampling["interval"], sampling["guidance"], sampling["channels"]) == ([0, 1], 2, 16)


def test_a_report_has_all_seeds_and_a_folder_called_trials_makes_no_trial(fitv2, definition, tmp_path):
    reserve(tmp_path / "trials/x/tiny", "A title")
    queue = MadeUp(tmp_path / "trials/x")
    queue.work_off(runs_of(build_study(tree(), "tiny"), queue.table, 3), 1, lambda left: None)
    (result,) = fitv2("study", definition, "--report", "--seeds", 3, "--out", "trials/x", "--json").json
    assert len(result["runs"]) == result["planned"] == result["scored"] == 6
    assert not result["trial"] and "A trial" not in (tmp_path / "trials/x/tiny/README.md").read_text()
    assert (tmp_path / "trials/x/README.md").is_file()


def test_another_study_of_that_name_is_refused(fitv2, definition, tmp_path):
    shutil.copyfile(definition, tmp_path / "convergence.yaml")
    assert "rename the file" in fitv2("study", tmp_path / "convergence.yaml", "--dry-run").sentence
    kept = tmp_path / "studies/tiny/tiny.yaml"
    kept.parent.mkdir(parents=True)
    kept.write_text(yaml.safe_dump(tree(title="Another title")))
    assert "Another title" in fitv2("study", definition, "--dry-run").sentence


@pytest.mark.slow
def test_a_study_runs_stops_and_continues_with_real_commands(fitv2, definition, tmp_path):
    """Stopped by SIGTERM while both trainings run, continued, reported, and not run again."""
    content = yaml.safe_load(definition.read_text())
    content["set"]["training.steps"], content["evaluation"]["points"] = 400, [200]
    definition.write_text(yaml.safe_dump(content))
    arguments = ["study", definition, "--seeds", 1, "--jobs", 2]
    child = process(command_line, *map(str, arguments))
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("runs/study/*/log.jsonl"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    child.terminate()
    child.join(60)
    assert child.exitcode == 128 + signal.SIGTERM and len(list(tmp_path.glob("runs/study/*/checkpoints/step-*"))) == 2
    (result,) = fitv2(*arguments, "--json").json
    assert result["failures"] == [] and len(result["runs"]) == 2
    page = (tmp_path / "studies/tiny/README.md").read_text()
    assert "sheets/FiTv2.png" in page and (tmp_path / "studies/tiny/tiny.yaml").read_text() == definition.read_text()
    provenance = [json.loads(path.read_text()) for path in tmp_path.glob("runs/study/*/provenance.json")]
    assert provenance[0][0]["from_step"] == 0 and len(provenance[0]) == 2
    before = (tmp_path / "studies/results.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "runs")
    fitv2(*arguments).ok()
    assert (tmp_path / "studies/results.jsonl").read_bytes() == before
    assert not list(tmp_path.glob("runs/study/*"))

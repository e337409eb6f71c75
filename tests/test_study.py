"""The queue of a study, its table and its pages, with commands made up."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest

from fitv2.legacy import COSTS
from fitv2.study.loading import build_study
from fitv2.study.outputs import has_diverged
from fitv2.study.queue import Clock, CommandFailed, Queue, done_of
from fitv2.study.report import MARK, Report, reserve, write_overview, write_report
from fitv2.study.results import REAL, Table
from fitv2.study.runs import frame_of, runs_of
from fitv2.study.verdicts import Figures
from fitv2.system.provenance import code_commit
from fitv2.training.run_folder import exported, kept_provenance
from studies import TREE, MadeUp, tree, work_off
from tiny import trainer


@pytest.fixture
def queue(tmp_path) -> MadeUp:
    return MadeUp(tmp_path)


def test_every_run_is_trained_and_scored_once(queue, tmp_path):
    runs, failures = work_off(queue)
    assert failures == [] and all(done_of([run], queue.table, queue.work) == 1 for run in runs)
    # A training, its point, and its end: the curve's last point and the final scores.
    assert [what for what, name in queue.ran if name == "FiT, seed 0"] == ["train", *["evaluate"] * 3]
    shutil.rmtree(tmp_path / "work")  # As on another machine, which has the table alone.
    again = MadeUp(tmp_path)
    assert work_off(again)[1] == [] and again.ran == []


def test_a_machine_that_has_the_table_alone_keeps_images_of_a_later_seed(queue, tmp_path):
    sheets = tmp_path / "tiny/sheets"
    first = runs_of(build_study(tree(), "tiny"), queue.table, 1)
    queue.work_off(first, 1, lambda left: None)
    assert sorted(path.name for path in sheets.iterdir()) == ["FiT.png", "FiTv2.png"]
    shutil.rmtree(sheets)
    work_off(queue)
    assert sorted(path.name for path in sheets.iterdir()) == ["FiT.png", "FiTv2.png"]


def test_images_are_of_the_condition_by_which_a_variant_is_judged(queue, tmp_path):
    conditions = {"own": {"guidance": 1, "variants": ["FiTv2"]}, "square": {"guidance": 1, "size": "12x12"}}
    better = {"kind": "better", "of": "FiTv2", "than": "FiT", "condition": "square"}
    evaluation = {"conditions": conditions, "curve": "square"}
    claims = [{"text": "x", "paper": "", "measure": better}]
    for _ in range(2):  # Also where another study has brought the scores: images are taken from the folder of work.
        work_off(queue, evaluation=evaluation, claims=claims)
        assert [(tmp_path / f"tiny/sheets/{name}.png").read_text() for name in ("FiT", "FiTv2")] == ["12x12", "12x12"]
        shutil.rmtree(tmp_path / "tiny/sheets")


def test_a_training_that_studies_share_is_run_once(queue, tmp_path):
    runs, _ = work_off(queue, evaluation={"points": []}, claims=[])
    # Without points there is no curve, whose last point would only cost time.
    assert [what for what, name in queue.ran if name == "FiT, seed 0"] == ["train", "evaluate"]
    queue.ran.clear()
    # Another study needs a point that the first one did not keep: from scratch, or the point would never come.
    for run in runs:
        (tmp_path / "work" / run.id / "checkpoints/step-00000004").mkdir(parents=True)
        shutil.rmtree(tmp_path / "work" / run.id / "model")
    work_off(queue)
    assert [what for what, name in queue.ran if name == "FiT, seed 0"] == ["train", "evaluate", "evaluate"]
    assert not list((tmp_path / "work").glob("*/checkpoints"))


def test_every_row_says_who_trained_and_who_scored(queue, tmp_path):
    runs, _ = work_off(queue)
    frame = frame_of(runs, Table(tmp_path))
    row = frame[(frame["condition"] == "own") & (frame["metric"] == "kid") & (frame["variant"] == "FiT")].iloc[0]
    assert (row["value"], row["error"], row["n"], row["step"]) == (0.1, 0.01, 40, 4)
    assert row["trained"]["by"][0]["commit"] == "c0ffee" and row["trained"]["training"] == "training-2"
    assert row["trained"]["settings"]["training"]["steps"] == 4 and len(row["trained"]["data"]) == 16
    assert row["scored"]["commit"] == "scorer" and row["scored"]["sampling"] == {"steps": 7}  # Not the queue's own.
    assert {"fitv2", "torch", "device", "threads", "reference", "settings", "size"} <= row["scored"].keys()
    real = frame[(frame["variant"] == REAL) & (frame["metric"] == "fd")].iloc[0]
    assert (real["value"], real["range"], real["n"]) == (0.5, [0.4, 0.6], 20)
    taken = frame[(frame["metric"] == "images") & (frame["variant"] == "FiT") & (frame["seed"] == 0)]
    assert taken.set_index("step")["value"].to_dict() == {2: 6, 4: 12}


def test_a_failure_does_not_stop_the_other_trainings(queue):
    queue.failing = {"evaluate": "no such file"}
    _, failures = work_off(queue)
    assert len(failures) == len(queue.table.trainings) == 4 and "FiT, seed 0 failed: no such file" in failures[0]


def test_images_that_are_not_finite_are_a_result(queue):
    queue.failing = {"evaluate": "an image is not finite (NaN or infinity)"}
    runs, failures = work_off(queue)
    assert failures == [] and queue.table.frame.query("metric == 'fd'")["value"].isna().all()
    assert all(run.pending(queue.table) == [] for run in runs)


def test_a_training_that_diverges_is_a_result_and_one_without_a_model_a_failure(tmp_path):
    class Forgetful(MadeUp):
        def write_training(self, words, folder):
            super().write_training(words, folder)
            shutil.rmtree(folder / "model")

    class Diverging(Forgetful):
        def write_training(self, words, folder):
            super().write_training(words, folder)
            self.write_log(folder, 99, grad_norm=None, images=1, tokens=1, tokens_per_second=1, cpu_seconds=1)
            raise CommandFailed("the training has diverged")

    assert "no model of step 4" in work_off(Forgetful(tmp_path / "forgetful"))[1][0]
    queue = Diverging(tmp_path / "diverging")
    runs, failures = work_off(queue, evaluation={"points": []}, claims=TREE["claims"][1:])
    assert failures == [] and all(has_diverged(queue.work / run.id) for run in runs)
    assert (queue.table.frame.query("metric == 'diverged'")["value"] == 1).sum() == 4
    assert all(run.pending(queue.table) == [] for run in runs)
    assert Figures(frame_of(runs, queue.table)).failures("FiT") == (2, 2)


def test_a_table_survives_kills_and_other_files_are_refused(queue, tmp_path, caplog):
    work_off(queue)
    table, path = queue.table, queue.table.path
    path.write_text(path.read_text() + '{"variant": "Fi')
    again = Table(tmp_path)
    assert len(again.rows) == len(table.rows) and "damaged" in caplog.text
    again.append([table.rows[0]])
    again.append([table.rows[0] | {"variant": "Other"}])
    # The same row twice, as after a merge, is one, also if two machines know the training under two names.
    assert len(Table(tmp_path).frame) == len(table.rows)
    path.write_text("precious")
    with pytest.raises(ValueError, match="no table"):
        Table(tmp_path)


def test_a_table_of_an_earlier_version_is_continued(queue, tmp_path):
    """Its trainings have the same identities, and their costs earlier names."""
    runs, _ = work_off(queue)
    earlier = {new: old for old, new in COSTS.items()}
    header, *lines = queue.table.path.read_text().splitlines()
    lines = [json.dumps({earlier.get(key, key): value for key, value in json.loads(line).items()}) for line in lines]
    queue.table.path.write_text("\n".join([header, *lines, ""]))
    table = Table(tmp_path)
    assert sum('"pictures_per_step"' in line for line in lines) == 4 and table.trainings == queue.table.trainings
    assert all(run.pending(table) == [] for run in runs)


def test_a_page_has_answer_claims_scores_and_images(queue, tmp_path):
    reserve(tmp_path / "tiny", "A title")
    conditions = {"own": {"guidance": 1}, "small": {"guidance": 1, "size": "12x12"}}
    runs, _ = work_off(queue, change="More seeds.", evaluation={"conditions": conditions})
    report = Report("tiny", runs[0].study, queue.table)
    write_report(report, tmp_path / "tiny")
    page = (tmp_path / "tiny/README.md").read_text()
    assert page.startswith(MARK) and all(x in page for x in ("A question?", "More seeds.", "small:", "c0ffee"))
    assert "| better | yes | 0 % | fd, own, 2 seeds |" in page and "so far" not in page
    # Real images are compared with others by ten draws of few images, and with models that were scored alike.
    assert "| real images | - | - | 0.1 |\n" in page and "| FiT | 2 | 0.7 | 0.2 |" in page
    assert "| real images | - | 0.5 (0.4 to 0.6) | 0.1 |" in page
    assert all((tmp_path / "tiny" / name).is_file() for name in re.findall(r"\]\((\S+\.png)\)", page))
    assert "forest.png" in page and (tmp_path / "tiny/sheets/FiTv2.png").read_text() == "own"
    shared = Report("shared", runs[0].study, queue.table)  # Its trainings are done, and it has no page.
    empty = Report("empty", build_study(tree(title="Later"), "x"), Table(tmp_path / "none"))
    write_overview([report, empty, shared], tmp_path)
    overview = (tmp_path / "README.md").read_text()
    assert (
        "[A title](tiny/README.md)" in overview
        and "## Not run yet\n\n- `empty`: later\n- `shared`: a title\n" in overview
    )
    # No file is overwritten that no study wrote.
    for name in ("README.md", "forest.png", "sheets/a.png"):
        precious = tmp_path / name[0] / name
        precious.parent.mkdir(parents=True)
        precious.write_text("precious")
        with pytest.raises(ValueError, match="overwritten"):
            write_report(report, tmp_path / name[0])
        assert precious.read_text() == "precious"


def test_a_page_says_where_the_best_tuned_value_is_an_end(queue, tmp_path):
    reserve(tmp_path / "tiny", "A title")
    tuning = {"values": [1e-3, 2e-3, 4e-3], "variants": ["FiT", "FiTv2"]}
    runs, _ = work_off(queue, tuning=tuning)  # Those that tune; all score alike, and the first value is taken.
    runs, _ = work_off(queue, tuning=tuning)
    write_report(Report("tiny", runs[0].study, queue.table), tmp_path / "tiny")
    page = (tmp_path / "tiny/README.md").read_text()
    assert "for FiT, FiTv2: each of" in page and "all of them, the best value is the smallest" in page


def test_an_unfinished_study_says_so_and_counts_the_seeds_of_each_row(queue, tmp_path):
    reserve(tmp_path / "tiny", "A title")
    study = build_study(tree(), "tiny")
    runs = runs_of(study, queue.table)
    queue.work_off(runs[:3], 1, lambda left: None)
    for row in queue.table.rows:
        if (row["variant"], row["seed"], row["condition"]) == ("FiT", 1, "own"):
            row |= {"value": None, "equal": None}
    report = Report("tiny", study, queue.table)
    write_report(report, tmp_path / "tiny")
    page = (tmp_path / "tiny/README.md").read_text()
    assert "3 of 4 planned training runs have all" in page and "so far** |" in page
    assert "after 3 of 4 planned training runs" in report.answer
    assert report.scores("own")["seeds"].tolist() == ["1, 1 failed", "1", "-"]
    queue.work_off(runs, 1, lambda left: None)
    whole = Report("tiny", study, queue.table)
    assert whole.so_far == "" and whole.answer.endswith(
        "1 stays open (FiTv2 at 1/2 of the steps against FiT), 1 has no result (FiTv2 against FiT)."
    )
    assert Report("tiny", study, queue.table, more_seeds=3).so_far == " so far"
    # Lines of earlier versions do not say what a model scores at the numbers of the row of real images.
    for row in queue.table.rows:
        row.pop("equal", None)
    assert Report("tiny", study, queue.table).scores_at_equal_numbers == {}


def test_a_training_of_two_studies_is_done_if_both_have_its_scores(queue):
    few, _ = work_off(queue, evaluation={"points": []}, claims=[])
    more = runs_of(build_study(tree(), "more"), queue.table)
    both = [[run, other] for run, other in zip(few, more, strict=True)]
    assert [done_of(group[:1], queue.table, queue.work) for group in both] == [1] * 4
    assert all(0.1 < done_of(group, queue.table, queue.work) < 1 for group in both)
    assert Clock([*few, *more], queue.table, queue.work).done() < 1


def test_the_time_left_follows_the_fraction_that_is_done(queue, monkeypatch):
    queue.failing = {"evaluate": "not yet"}
    runs, _ = work_off(queue)
    clock = Clock(runs, queue.table, queue.work)
    assert clock.left()[1] is None and 0.01 < clock.left()[0] < 1
    monkeypatch.setattr("fitv2.study.queue.time", SimpleNamespace(monotonic=lambda: clock.start + 60))
    queue.failing = {}
    work_off(queue)
    assert clock.left() == (pytest.approx(1), pytest.approx(0))


def test_training_keeps_averaged_weights_of_a_step_and_says_who_trained(tmp_path):
    long, short = tmp_path / "long", tmp_path / "short"
    trainer(long, "training.steps=5", "log.export_at=[3]").fit(lambda figures: None)
    trainer(short, "training.steps=3").fit(lambda figures: None)
    assert (exported(long, 3) / "model.safetensors").read_bytes() == (short / "model/model.safetensors").read_bytes()
    trainer(long, "training.steps=6").fit(lambda figures: None)
    entries = kept_provenance(long)
    assert [entry["from_step"] for entry in entries] == [0, 5] and entries[0]["data"] == entries[1]["data"]
    assert {"fitv2", "commit", "torch", "device", "threads"} <= entries[0].keys()


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
    git("commit", "-q", "-m", "x")
    commit = git("rev-parse", "HEAD").strip()[:12]
    assert code_commit(package) == commit
    (package / "__init__.py").write_text("x = 1")
    assert code_commit(package) == f"{commit}, changed"
    monkeypatch.setenv("PATH", "")
    assert code_commit(package) is None


def test_a_failed_command_is_reported_by_its_last_words(tmp_path):
    queue = Queue(Table(tmp_path), tmp_path / "work", 1, lambda run: tmp_path)
    with pytest.raises(CommandFailed, match=r"a sample failed: .*--nonsense"):
        queue.command(["sample", "--nonsense"], tmp_path / "out", "a sample")

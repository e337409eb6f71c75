"""A run that was interrupted, at whatever moment, ends as the run that was not: the same bits."""

import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from fitv2 import randomness
from fitv2.checkpoints.training_state import checkpoints, read_state
from fitv2.training.log import RunLog
from fitv2.training.run_folder import kept_provenance, same_place
from tiny import MODERN, command_line, exit_code, log_lines, process, recipe, stop_at, trainer

SETTINGS = [
    *("model.width=32", "model.depth=2", "model.heads=2"),
    *("training.max_tokens_per_batch=256", "training.batches_per_step=2"),
    *("training.steps=30", "training.warmup_steps=5", "training.decay_fraction=0.3"),
    *("log.checkpoint_every=3", "log.sample_every=15", "log.sample_steps=1"),
    *("training.holdout=0.01", "log.holdout_every=4"),
]
COMMAND = ["train", "--recipe", "fashion-tiny", "--resume", *(word for s in SETTINGS for word in ("--set", s))]


def nothing(figures) -> None: ...


def assert_same_run(run: Path, expected: Path) -> None:
    """Log, newest checkpoint, exported model and sample sheets."""
    assert log_lines(run) == log_lines(expected)
    newest = [checkpoints(folder / "checkpoints")[-1] for folder in (run, expected)]
    states = [read_state(folder) for folder in newest]
    assert states[0] | {"seconds": 0} == states[1] | {"seconds": 0}
    files = [path.relative_to(expected) for folder in (newest[1], expected / "model") for path in folder.iterdir()]
    files += [path.relative_to(expected) for path in (expected / "samples").iterdir()]
    assert len(files) >= 7
    for file in files:
        assert file.name == "state.json" or (run / file).read_bytes() == (expected / file).read_bytes(), file


@pytest.mark.parametrize(
    ("overrides", "stops"),
    [
        (
            ["training.precision=fp32"],
            (3, 6, 10),
        ),  # before any checkpoint, after the one of step 5, before the last one
        (["training.precision=bf16"], (6,)),
        (MODERN, (6,)),
    ],
)
def test_ten_steps_are_five_and_five_more_bit_for_bit(tmp_path, overrides, stops):
    overrides = [*overrides, "training.warmup_steps=6", "training.decay_fraction=0.4"]
    trainer(tmp_path / "whole", *overrides).fit(nothing)
    for stop in stops:
        run = tmp_path / f"stopped at {stop}"
        with pytest.raises(KeyboardInterrupt):
            trainer(run, *overrides).fit(stop_at(stop))
        second = trainer(run, *overrides)
        second.fit(nothing)
        assert second.progress.cursor.epoch >= 2, "the run must cross epochs"
        assert_same_run(run, tmp_path / "whole")


@pytest.mark.parametrize(("version", "said"), [(None, 1), (1, 1), (randomness.VERSION, 0)])
def test_a_checkpoint_of_other_randomness_is_continued_with_a_word(tmp_path, caplog, version, said):
    trainer(tmp_path, "training.steps=1").fit(nothing)
    (checkpoint,) = checkpoints(tmp_path / "checkpoints")
    state = read_state(checkpoint)
    assert state.pop("randomness") == randomness.VERSION
    (checkpoint / "state.json").write_text(json.dumps(state if version is None else state | {"randomness": version}))
    trainer(tmp_path, "training.steps=2").fit(nothing)
    warnings = [record.message for record in caplog.records if "dropped labels" in record.message]
    assert len(warnings) == said and len(log_lines(tmp_path)) == 2


def test_the_continued_run_leaves_the_checkpoint_it_came_from_as_it_was(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path).fit(stop_at(6))
    (folder,) = checkpoints(tmp_path / "checkpoints")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    trainer(tmp_path).fit(nothing)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_finished_run_has_nothing_left_to_do_and_more_steps_go_on_from_its_end(tmp_path):
    trainer(tmp_path).fit(nothing)
    again, further = trainer(tmp_path), trainer(tmp_path, "training.steps=12")
    again.fit(lambda figures: pytest.fail("a finished run trained on"))
    assert again.progress.done == 10
    further.fit(nothing)
    assert [line["step"] for line in log_lines(tmp_path)] == list(range(1, 13))


def test_a_sheet_that_a_kill_right_after_its_checkpoint_prevented_is_made_on_resume(tmp_path):
    trainer(tmp_path).fit(nothing)
    sheet = tmp_path / "samples/step-00000010.png"
    before = sheet.read_bytes()
    sheet.unlink()
    trainer(tmp_path).fit(nothing)
    assert sheet.read_bytes() == before and len(list(sheet.parent.iterdir())) == 1


def test_exports_that_never_come_are_mentioned(tmp_path, caplog):
    settings = "training.steps=2", "log.export_at=[1, 2, 7]"
    trainer(tmp_path, *settings).fit(nothing)
    assert "log.export_at: nothing is exported at 7" in caplog.text
    caplog.clear()
    trainer(tmp_path, *settings, "training.steps=8").fit(nothing)
    assert "export_at" not in caplog.text and len(list((tmp_path / "exports").iterdir())) == 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run of `COMMAND` that nobody interrupts."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert exit_code(command_line, *COMMAND, "--out", str(run)) == 0
    return run


def finish(run: Path, whole: Path) -> None:
    """Continues a run to its end, which must be that of the whole one."""
    assert exit_code(command_line, *COMMAND, "--out", str(run)) == 0
    assert_same_run(run, whole)


def lines_of(run: Path) -> int:
    return len((run / "log.jsonl").read_bytes().splitlines()) if (run / "log.jsonl").exists() else 0


@pytest.mark.slow
def test_a_process_killed_several_times_and_resumed_ends_as_the_one_that_was_not(tmp_path, whole):
    moments = random.Random(0)
    for _ in range(4):
        target = lines_of(tmp_path) + moments.randint(1, 5)
        child = process(command_line, *COMMAND, "--out", str(tmp_path))
        while child.is_alive() and lines_of(tmp_path) < target:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.02))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    finish(tmp_path, whole)


def command_line_killed_at(operation: int, run: str, *arguments: str) -> None:
    """`fitv2 ARGUMENTS` that dies right before its n-th operation on files of the run."""
    left = [operation]

    def count(event, details):
        changes = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
        if changes or (event == "open" and run in str(details[0])):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    command_line(*arguments, "--out", run)


@pytest.mark.slow
def test_a_process_killed_between_two_file_operations_leaves_a_run_that_can_go_on(tmp_path, whole):
    moments, kills = random.Random(1), 0
    for operation in [moments.randint(1, 60) for _ in range(6)]:
        code = exit_code(command_line_killed_at, operation, str(tmp_path), *COMMAND)
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
    assert kills >= 4
    finish(tmp_path, whole)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    trainer(run, "log.sample_every=5").fit(nothing)
    return run


@pytest.mark.parametrize("step", [4, 5, 7, 10])
def test_sigterm_saves_the_step_that_is_under_way_and_ends_the_training(tmp_path, uninterrupted, step):
    """Right before, at and after a checkpoint's step, and in the last one, which ends the run anyway."""
    run = trainer(tmp_path / "run", "log.sample_every=5")

    def report(figures):
        if figures["step"] == step - 1:
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    run.fit(report)
    assert (run.progress.done, run.progress.stopping) == (step, step < 10) and signal.getsignal(
        signal.SIGTERM
    ) == before
    assert read_state(checkpoints(tmp_path / "run/checkpoints")[-1])["step"] == step
    second = trainer(tmp_path / "run", "log.sample_every=5")
    second.fit(nothing)
    assert not second.progress.stopping
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_harms_no_checkpoint(tmp_path, whole):
    """Both at random moments, also before the first step."""
    moments = random.Random(2)
    for number, wait in enumerate((0.0, 0.3, moments.uniform(0.5, 1)), 1):
        child = process(command_line, *COMMAND, "--out", str(tmp_path))
        # Each start adds an entry. Before it, Python may still be loading the tests' own modules.
        while child.is_alive() and len(kept_provenance(tmp_path)) < number:
            time.sleep(0.001)
        time.sleep(wait)
        for _ in range(2):
            if child.is_alive():
                os.kill(child.pid, signal.SIGINT)
                time.sleep(moments.uniform(0, 0.02))
        child.join()
        assert child.exitcode in (-signal.SIGINT, 128 + signal.SIGINT, 0)
    finish(tmp_path, whole)


def test_a_full_disk_is_a_sentence_and_harms_nothing(tmp_path):
    """Stood in for by a limit on the size of files, which the system reports as an error in the same way."""
    trainer(tmp_path / "whole").fit(nothing)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (200, 3000, 100_000):  # Too little for the model's description, for its weights, for a moment.
        run = tmp_path / f"run {limit}"
        with pytest.raises(KeyboardInterrupt):
            trainer(run).fit(stop_at(6))
        before = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()}
        exported = sorted((run / "model").iterdir())
        second = trainer(run)
        second.resume()
        second.progress.done = 10
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            with pytest.raises(OSError, match="step 10 could not"):
                second.save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert before == {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()}
        assert sorted((run / "model").iterdir()) == exported and len(list((run / "checkpoints").iterdir())) == 1
        trainer(run).fit(nothing)
        assert_same_run(run, tmp_path / "whole")


def test_the_log_is_cut_back_to_the_checkpoint(tmp_path):
    lines = [json.dumps({"step": step}) for step in range(1, 9)]
    log, plain = tmp_path / "log.jsonl", (recipe(), torch.device("cpu"))
    for end in ("\n", "", '\n{"step": 9, "lo', "\n\n", '\n{"step": "x"}\n'):
        log.write_text("\n".join(lines) + end)
        RunLog(tmp_path, 8, *plain).close()
        kept = log.read_text().splitlines()
        assert kept == (lines if end else lines[:-1]) and log.read_bytes().endswith(b"\n")
        RunLog(tmp_path, 3, *plain).close()
        assert log.read_text().splitlines() == lines[:3]
    RunLog(tmp_path, 0, *plain).close()
    assert log.read_text() == ""


@pytest.mark.parametrize("name", ["fashion", "emoji"])
def test_a_folder_called_like_a_built_in_source_is_another_place(name):
    assert same_place(name, name) and not same_place(name, f"./{name}")
    assert same_place(f"./{name}s", f"{name}s")

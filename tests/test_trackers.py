"""Trackers get the figures of a run, and no tracker can end it."""

import logging

import pytest
from accelerate import PartialState, tracking

from fitv2.errors import UserError
from fitv2.training import trackers
from fitv2.training.log import read_log
from tiny import stop_at, trainer


@pytest.fixture(autouse=True)
def _other_tests_know_no_processes():
    yield
    PartialState._reset_state()


class Fake:
    """As accelerate's classes: it notes what it gets, and fails at the step `bad`."""

    bad = 0

    def __init__(self, project, **options) -> None:
        self.project, self.options, self.seen, self.ended = project, options, {}, False

    def start(self) -> None:
        if self.bad < 0:
            raise ConnectionError("no network")

    def log(self, values, step) -> None:
        if step == self.bad:
            raise ConnectionError("no network")
        self.seen[step] = values

    def finish(self) -> None:
        self.ended = True


@pytest.fixture
def wandb(monkeypatch):
    """The fake trackers that were made in place of those of Weights & Biases and Trackio."""
    made = []

    def make(*arguments, **options):
        made.append(Fake(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    monkeypatch.setattr(tracking, "WandBTracker", make)
    monkeypatch.setattr(tracking, "TrackioTracker", make)
    return made


def test_a_tracker_gets_the_figures_of_every_step_and_is_told_of_the_run(tmp_path, wandb):
    trainer(tmp_path / "run", "log.trackers=[wandb]").fit(lambda figures: None)
    (tracker,) = wandb
    assert tracker.ended and tracker.project == "fitv2" and tracker.options["name"] == "run"
    assert tracker.options["config"]["training"]["steps"] == 10
    lines = read_log(tmp_path / "run/log.jsonl")
    assert list(tracker.seen) == [line["step"] for line in lines] == list(range(1, 11))
    assert all(tracker.seen[line["step"]]["loss"] == line["loss"] for line in lines)
    assert set(tracker.seen[1]) == {"loss", "grad_norm", "learning_rate", "tokens_per_second"}


@pytest.mark.parametrize(("bad", "got"), [(4, [1, 2, 3]), (-1, [])])
def test_a_tracker_that_fails_is_a_warning_and_the_run_goes_on(tmp_path, wandb, monkeypatch, caplog, bad, got):
    monkeypatch.setattr(Fake, "bad", bad)
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, "log.trackers=[wandb]").fit(lambda figures: None)
    told = [message for message in caplog.messages if "wandb" in message]
    assert len(told) == 1 and "no network" in told[0]
    assert list(wandb[0].seen) == got and len(read_log(tmp_path / "log.jsonl")) == 10


def test_a_resumed_run_continues_what_its_trackers_have(tmp_path, wandb):
    for steps in (5, 10):
        trainer(tmp_path / "run", "log.trackers=[wandb, trackio]", f"training.steps={steps}").fit(lambda figures: None)
    trainer(tmp_path / "other", "log.trackers=[wandb]").fit(lambda figures: None)
    first, second, other = (tracker.options["id"] for tracker in wandb[::2])
    assert first == second != other and all(tracker.options["resume"] == "allow" for tracker in wandb[::2])
    assert [tracker.options["resume"] for tracker in wandb[1::2]] == ["never", "allow"]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_without_its_package_is_a_sentence_before_anything_is_written(tmp_path, monkeypatch, name):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"log.trackers: {name} needs the package {name}: pip install {name}"):
        trainer(tmp_path / "run", f"log.trackers=[{name}]")
    assert not (tmp_path / "run").exists()


def test_tensorboard_has_every_step_once_after_a_run_was_resumed(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, "log.tensorboard=true").fit(stop_at(8))
    trainer(tmp_path, "log.trackers=[tensorboard]").fit(lambda figures: None)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 11))

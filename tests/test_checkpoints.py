"""Checkpoints of a training: which are kept, and what is said of one that cannot be read."""

import os
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from fitv2.checkpoints.state_dict import write_tensors
from fitv2.checkpoints.training_state import checkpoints, prune, read_part, read_state, save_checkpoint
from fitv2.errors import UserError
from tiny import trainer


def nothing(figures) -> None: ...


TENSORS = {"model": {"a": torch.arange(6.0)}, "ema": {"a": torch.ones(2, 3)}}


def save(folder: Path, *steps: int) -> None:
    for step in steps:
        save_checkpoint(folder, step, TENSORS, {"note": step})


def test_a_checkpoint_comes_back_and_nothing_else_is_left_beside_it(tmp_path):
    for _ in range(2):
        save(tmp_path, 3)
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
    assert read_state(tmp_path / "step-00000003") == {"step": 3, "note": 3}
    for name, content in TENSORS.items():
        assert torch.equal(read_part(tmp_path / "step-00000003", name, {})["a"], content["a"])


def test_checkpoints_are_ordered_by_step_and_unfinished_ones_are_not_listed(tmp_path):
    save(tmp_path, 100_000_000, 7, 99_999_999, 20)
    (tmp_path / "step-00000007" / "large").write_bytes(bytes(10_000))
    os.utime(tmp_path / "step-00000007")
    shutil.copytree(tmp_path / "step-00000007", tmp_path / ".step-00000009.partial")
    shutil.copytree(tmp_path / "step-00000007", tmp_path / "step-00000007-keep")
    (tmp_path / "step-00000008").mkdir()
    assert [read_state(path)["step"] for path in checkpoints(tmp_path)] == [7, 20, 99_999_999, 100_000_000]
    assert checkpoints(tmp_path / "nowhere") == []
    save(tmp_path, 9)
    assert not (tmp_path / ".step-00000009.partial").exists()
    prune(tmp_path, 2)
    assert [read_state(path)["step"] for path in checkpoints(tmp_path)] == [99_999_999, 100_000_000]
    prune(tmp_path, 3)
    assert len(checkpoints(tmp_path)) == 2


def test_a_run_keeps_the_given_number_of_checkpoints(tmp_path):
    trainer(tmp_path, "log.checkpoint_every=2", "log.keep_checkpoints=3").fit(nothing)
    assert [read_state(path)["step"] for path in checkpoints(tmp_path / "checkpoints")] == [6, 8, 10]


@pytest.fixture
def saved(tmp_path) -> Path:
    """The checkpoint of a run of one step."""
    trainer(tmp_path, "training.steps=1").fit(nothing)
    return tmp_path / "checkpoints/step-00000001"


@pytest.mark.parametrize("file", ["model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("share", [0.0, 0.5, None])
def test_a_damaged_checkpoint_is_a_sentence_that_says_what_to_do(tmp_path, saved, file, share):
    content = (saved / file).read_bytes()
    (saved / file).write_bytes(content[: int(share * len(content))] if share is not None else b"\xff" * len(content))
    with pytest.raises(ValueError, match=r"step-00000001.* damaged"):
        trainer(tmp_path).fit(nothing)
    assert (saved / file).exists(), "nothing may be deleted on a failure"


@pytest.mark.parametrize("part", ["ema", "optimizer", "state"])
def test_a_checkpoint_whose_file_holds_something_else_is_damaged(tmp_path, saved, part):
    if part == "state":
        (saved / "state.json").write_text('["no", "object"]')
    else:
        write_tensors(saved / f"{part}.safetensors", {"a": torch.ones(1)})
    with pytest.raises(UserError, match=rf"{part}.* is damaged .*from the one before"):
        trainer(tmp_path).fit(nothing)


def test_a_checkpoint_that_does_not_say_what_it_was_trained_on_is_refused(tmp_path, saved):
    (saved / "state.json").write_text('{"step": 1}')
    with pytest.raises(UserError, match="lacks classes, content, trained"):
        trainer(tmp_path)


@pytest.mark.parametrize(
    ("where", "error", "told"),
    [
        ("training.ema.EMA.load", ValueError("a bug"), "^a bug$"),
        ("checkpoints.state_dict.safe_open", PermissionError(), "permission denied$"),
    ],
)
def test_other_errors_are_not_called_damage(tmp_path, saved, monkeypatch, where, error, told):
    """Users would delete a good checkpoint."""
    monkeypatch.setattr(f"fitv2.{where}", Mock(side_effect=error))
    with pytest.raises(ValueError, match=told):
        trainer(tmp_path).fit(nothing)


def test_a_checkpoint_of_another_network_or_without_one_of_its_files(tmp_path, saved):
    with pytest.raises(ValueError, match=r"missing blocks\.2"):
        trainer(tmp_path, "model.depth=3").fit(nothing)
    (saved / "ema.safetensors").unlink()
    with pytest.raises(ValueError, match=r"ema\.safetensors"):
        trainer(tmp_path).fit(nothing)


def test_a_checkpoint_before_the_first_optimiser_step(tmp_path):
    """As when every step so far was skipped."""
    first = trainer(tmp_path)
    first.save()
    second = trainer(tmp_path)
    second.resume()
    assert second.progress.done == 0 and not second.learner.optimizer.tensors()

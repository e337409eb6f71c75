"""Several processes train as one does, with whole weights or split ones, and take over each other's runs."""

import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fitv2.training.checkpoint import checkpoints, read_part, read_state
from fitv2.training.preemption import STOPPED
from tiny import command_line, log_lines, process, processes, train, trainer

SETTINGS = [
    *("training.steps=50", "training.packs_per_step=4", "training.tokens_per_pack=100", "training.label_drop=0.3"),
    *("training.ema_decay=0.9", "log.checkpoint_every=40", "log.sample_every=25"),
]
SHARDED = "training.sharding=fsdp"


def run_together(world: int, target, *arguments) -> None:
    """To the end, which must be a good one."""
    assert exit_codes(processes(world, target, *arguments)) == [0] * world


def exit_codes(started) -> list[int]:
    for member in started:
        member.join(100)
    return [member.exitcode for member in started]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The run that one process makes."""
    run = tmp_path_factory.mktemp("alone") / "run"
    train(run, *SETTINGS)
    return run


@pytest.fixture(scope="module")
def sharded_by_two(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("sharded by two") / "run"
    run_together(2, train, run, *SETTINGS, SHARDED)
    return run


def parts_of(run: Path) -> dict[str, torch.Tensor]:
    """Weights, averages and moments of a run's newest checkpoint, whole."""
    newest = checkpoints(run / "checkpoints")[-1]
    found = {part: read_part(newest, part, {}) for part in ("model", "ema", "optimizer")}
    return {f"{part}.{name}": tensor for part, content in found.items() for name, tensor in content.items()}


def assert_same_training(run: Path, expected: Path) -> None:
    """Every figure of the log within 1e-5, and weights, averages, moments and sheets near each other."""
    lines, others = log_lines(run), log_lines(expected)
    assert len(lines) == len(others) == 50
    for line, other in zip(lines, others, strict=True):
        assert line == pytest.approx(other, rel=1e-5)
    parts, expected_parts = parts_of(run), parts_of(expected)
    assert parts.keys() == expected_parts.keys()
    for name, tensor in expected_parts.items():
        torch.testing.assert_close(parts[name], tensor, atol=1e-5, rtol=1e-3)
    averages = load_file(run / "model/model.safetensors")
    assert all(torch.equal(averages[name], parts[f"ema.{name}"]) for name in averages) and len(averages) > 20
    for sheet in ("step-00000025.png", "step-00000050.png"):
        with Image.open(run / "samples" / sheet) as page, Image.open(expected / "samples" / sheet) as other:
            assert np.abs(np.asarray(page, int) - np.asarray(other, int)).max() <= 1


@pytest.mark.parametrize(("world", "sharding"), [(2, "none"), (4, "none"), (4, "fsdp")])
def test_several_processes_train_as_one(tmp_path, alone, world, sharding):
    run_together(world, train, tmp_path, *SETTINGS, f"training.sharding={sharding}")
    assert_same_training(tmp_path, alone)


def test_two_processes_with_split_weights_train_as_one(sharded_by_two, alone):
    assert_same_training(sharded_by_two, alone)


def continued(tmp_path: Path, run: Path) -> Path:
    """A copy of a run as it was at its first checkpoint."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    first, *later = checkpoints(copy / "checkpoints")
    assert read_state(first)["step"] == 40
    for path in (*later, copy / "model", copy / "samples/step-00000050.png"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return copy


def test_what_two_saved_one_continues(tmp_path, sharded_by_two, alone):
    run = continued(tmp_path, sharded_by_two)
    train(run, *SETTINGS)
    assert_same_training(run, alone)


@pytest.mark.parametrize(("world", "sharding"), [(4, "fsdp"), (2, "none")])
def test_what_two_saved_others_continue(tmp_path, sharded_by_two, alone, world, sharding):
    run = continued(tmp_path, sharded_by_two)
    run_together(world, train, run, *SETTINGS, f"training.sharding={sharding}")
    assert_same_training(run, alone)


def test_what_one_saved_two_continue_with_split_weights(tmp_path, alone):
    run = continued(tmp_path, alone)
    run_together(2, train, run, *SETTINGS, SHARDED)
    assert_same_training(run, alone)


def test_what_two_saved_two_continue_bit_for_bit(tmp_path, sharded_by_two):
    run = continued(tmp_path, sharded_by_two)
    run_together(2, train, run, *SETTINGS, SHARDED)
    assert log_lines(run) == log_lines(sharded_by_two)
    parts, expected = parts_of(run), parts_of(sharded_by_two)
    assert all(torch.equal(parts[name], tensor) for name, tensor in expected.items())

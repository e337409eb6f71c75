"""Several processes train as one does, with whole weights or split ones, and take over each other's runs."""

import os
import pickle
import random
import resource
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounterWithBackend

import test_resume
from fitv2.checkpoints import sharded
from fitv2.checkpoints.model_folder import load_pretrained
from fitv2.checkpoints.training_state import checkpoints, read_part, read_state
from fitv2.distributed.parallel import ParallelModel, by_shares
from fitv2.distributed.ranks import join_processes
from fitv2.tokens import TokenBatch
from fitv2.training.optimizer import orthogonal
from tiny import MODERN, command_line, exit_codes, log_lines, processes, random_model, run_together, train

pytestmark = pytest.mark.slow  # Several processes in every test.
SETTINGS = [
    *("training.steps=50", "training.batches_per_step=4", "training.max_tokens_per_batch=100"),
    *("training.class_dropout_prob=0.3", "training.ema_decay=0.9", "log.checkpoint_every=40", "log.sample_every=25"),
]
SHARDED = "training.sharding=fsdp"


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
    """The losses within 1e-5, the log's other figures, weights, averages, moments and sheets near each other."""
    lines, others = log_lines(run), log_lines(expected)
    assert len(lines) == len(others) == 50
    for line, other in zip(lines, others, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert line == pytest.approx(other, rel=1e-4)
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
    for path in later:
        shutil.rmtree(path)
    for file in ("model/model.safetensors", "samples/step-00000050.png"):
        (copy / file).unlink()
    return copy


@pytest.mark.parametrize(
    ("before", "world", "sharding"),
    [("sharded_by_two", 1, "none"), ("sharded_by_two", 4, "fsdp"), ("sharded_by_two", 2, "none"), ("alone", 2, "fsdp")],
)
def test_another_number_of_processes_continues(tmp_path, request, alone, before, world, sharding):
    run = continued(tmp_path, request.getfixturevalue(before))
    settings = *SETTINGS, f"training.sharding={sharding}"
    train(run, *settings) if world == 1 else run_together(world, train, run, *settings)
    assert_same_training(run, alone)


def test_what_two_saved_two_continue_bit_for_bit(tmp_path, sharded_by_two):
    run = continued(tmp_path, sharded_by_two)
    run_together(2, train, run, *SETTINGS, SHARDED)
    assert_same_bits(run, sharded_by_two, "samples/step-00000050.png")


def train_compiled(run: Path, *overrides: str) -> None:
    """A run whose blocks are traced as for compilation, but run as they are: generating code takes a minute."""
    graphs = CompileCounterWithBackend("eager")
    torch.compile = partial(torch.compile, backend=graphs)
    os.environ["CXX"] = sys.executable  # Only has to be there.
    train(run, *overrides, "training.compile=true")
    assert graphs.frame_count


@pytest.mark.parametrize(("work", "sharding"), [(train, "fsdp"), (train_compiled, "fsdp"), (train_compiled, "none")])
def test_autocast_and_activation_checkpointing_in_two_processes(tmp_path, work, sharding):
    settings = [*SETTINGS, "training.steps=3", "training.precision=bf16"]
    train(tmp_path / "alone", *settings)
    settings += [f"training.sharding={sharding}", "training.activation_checkpointing=true"]
    run_together(2, work, tmp_path / "run", *settings)
    for line, other in zip(log_lines(tmp_path / "run"), log_lines(tmp_path / "alone"), strict=True):
        assert line == pytest.approx(other, rel=0.01)


def compare_shares() -> None:
    join_processes("cpu")
    for rows in (1, 2, 3, 4):
        for dtype in (torch.float32, torch.bfloat16):
            matrices = torch.randn(rows, 20, 8, generator=torch.Generator().manual_seed(rows)).to(dtype)
            shares: list[int] = []

            def function(share: torch.Tensor, shares: list[int] = shares) -> torch.Tensor:
                shares.append(len(share))
                return orthogonal(share)

            assert torch.equal(by_shares(function, matrices), orthogonal(matrices))
            assert len(shares) == 1 and shares[0] <= -(-rows // 3)


def test_processes_compute_shares_of_rows_and_all_get_all():
    """Also where there are fewer rows than processes."""
    run_together(3, compare_shares)


def hold_gradients_once() -> None:
    model = ParallelModel(random_model(), join_processes("cpu"), precision="fp32")
    batch = TokenBatch(torch.randn(6, 16), [(2, 3)])
    model(batch, torch.rand(1), torch.tensor([3])).square().sum().backward()
    gradients = [weight.grad for weight in model.module.parameters()]
    buckets = {gradient.untyped_storage().data_ptr(): gradient.untyped_storage().nbytes() for gradient in gradients}
    assert len(buckets) <= 2, "each gradient is a tensor of its own, beside the buckets in which all are averaged"
    assert sum(buckets.values()) == sum(gradient.nbytes for gradient in gradients)


def test_gradients_are_held_once():
    run_together(2, hold_gradients_once)


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_options_beyond_the_paper_in_two_processes(tmp_path, sharding):
    """The checkpoint in the middle is continued, too: Muon's momentum is split and gathered like AdamW's moments."""
    settings = [*SETTINGS, *MODERN, "training.steps=6", "log.checkpoint_every=3", "log.sample_every=null"]
    train(tmp_path / "alone", *settings)
    run_together(2, train, tmp_path / "run", *settings[:-3], "training.steps=3", f"training.sharding={sharding}")
    run_together(2, train, tmp_path / "run", *settings, f"training.sharding={sharding}")
    for line, other in zip(log_lines(tmp_path / "run"), log_lines(tmp_path / "alone"), strict=True):
        assert line == pytest.approx(other, rel=1e-4)
    parts, expected = parts_of(tmp_path / "run"), parts_of(tmp_path / "alone")
    assert parts.keys() == expected.keys() and any("momentum_buffer" in name for name in parts)
    for name, tensor in expected.items():
        torch.testing.assert_close(parts[name], tensor, atol=1e-4, rtol=1e-2)


def test_the_averaged_weights_of_a_checkpoint_of_split_weights_are_a_model(sharded_by_two):
    newest = checkpoints(sharded_by_two / "checkpoints")[-1]
    loaded, exported = load_pretrained(newest), load_pretrained(sharded_by_two)
    assert loaded.class_names == exported.class_names
    for name, tensor in exported.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)


def test_shards_that_would_run_code_are_refused(tmp_path, sharded_by_two):
    class Malicious:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "was here",))

    run = continued(tmp_path, sharded_by_two)
    (run / "checkpoints/step-00000040/shards/.metadata").write_bytes(pickle.dumps(Malicious()))
    for read in (lambda: train(run, *SETTINGS), lambda: load_pretrained(run / "checkpoints/step-00000040")):
        with pytest.raises(ValueError, match=r"damaged .*refused: .*code"):
            read()
    assert not (tmp_path / "was here").exists()


COMMAND = [*test_resume.COMMAND, "--set", SHARDED]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    """The run of `COMMAND` by two processes that nobody interrupts."""
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    run_together(2, command_line, *COMMAND, "--out", str(run))
    return run


def test_a_distance_is_measured_on_one_of_two_processes(tmp_path):
    changes = ["training.steps=4", "training.warmup_steps=0", "log.sample_every=null"]
    changes += ["log.distance_every=2", "log.distance_images=20"]
    chosen = [word for change in changes for word in ("--set", change)]
    run_together(2, command_line, *COMMAND, *chosen, "--out", str(tmp_path))
    assert [line["step"] for line in log_lines(tmp_path) if line.get("fd", 0) > 1] == [2, 4]


def assert_same_bits(run: Path, expected: Path, sheet: str = "samples/step-00000030.png") -> None:
    assert log_lines(run) == log_lines(expected)
    parts, expected_parts = parts_of(run), parts_of(expected)
    assert parts.keys() == expected_parts.keys()
    assert all(torch.equal(parts[name], tensor) for name, tensor in expected_parts.items())
    for file in ("model/model.safetensors", sheet):
        assert (run / file).read_bytes() == (expected / file).read_bytes()
    assert not list((run / "checkpoints").glob(".*")), "nothing may be left of what was not finished"


def wait_for_lines(run: Path, number: int, started) -> None:
    log = run / "log.jsonl"
    while all(member.is_alive() for member in started):
        if log.exists() and len(log.read_bytes().splitlines()) >= number:
            return
        time.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_of_two_stops_both_at_the_same_step_and_the_same_command_continues(
    tmp_path, uninterrupted, number
):
    pair = processes(2, command_line, *COMMAND, "--out", str(tmp_path))
    wait_for_lines(tmp_path, 4, pair)
    os.kill(pair[1].pid, number)
    assert exit_codes(pair) == [128 + number] * 2
    last = log_lines(tmp_path)[-1]["step"]
    assert 4 < last < 30 and read_state(checkpoints(tmp_path / "checkpoints")[-1])["step"] == last
    run_together(2, command_line, *COMMAND, "--out", str(tmp_path))
    assert_same_bits(tmp_path, uninterrupted)


def test_processes_killed_several_times_and_resumed_end_as_those_that_were_not(tmp_path, uninterrupted):
    moments = random.Random(0)
    for victim in (0, 1, 0):
        done = len(log_lines(tmp_path)) if (tmp_path / "log.jsonl").exists() else 0
        pair = processes(2, command_line, *COMMAND, "--out", str(tmp_path))
        wait_for_lines(tmp_path, done + moments.randint(1, 6), pair)
        time.sleep(moments.uniform(0, 0.05))
        pair[victim].kill()
        codes = exit_codes(pair)
        assert codes[victim] == -signal.SIGKILL and 0 not in codes, "who lost the other must not wait for ever"
    run_together(2, command_line, *COMMAND, "--out", str(tmp_path))
    assert_same_bits(tmp_path, uninterrupted)


def command_line_on_a_full_disk(run: str) -> None:
    """`COMMAND` in which, after the first checkpoint, the second process can write no more than a few bytes a file."""
    write = sharded.save

    def save(*arguments, **options):
        if os.environ["RANK"] == "1" and checkpoints(Path(run) / "checkpoints"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        write(*arguments, **options)

    sharded.save = save
    with pytest.raises(SystemExit, match="process 1: OSError"):
        command_line(*COMMAND, "--out", run)


def test_a_full_disk_under_one_process_is_a_sentence_in_both_and_harms_nothing(tmp_path, uninterrupted):
    run_together(2, command_line_on_a_full_disk, str(tmp_path))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    run_together(2, command_line, *COMMAND, "--out", str(tmp_path))
    assert_same_bits(tmp_path, uninterrupted)


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("share", [0.0, 0.5, None])
def test_damaged_shards_are_a_sentence_that_says_what_to_do(tmp_path, sharded_by_two, file, share):
    run = continued(tmp_path, sharded_by_two)
    path = run / "checkpoints/step-00000040/shards" / file
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))] if share is not None else b"\xff" * len(content))
    with pytest.raises(ValueError, match="step-00000040/shards"):
        train(run, *SETTINGS)
    assert path.exists(), "nothing may be deleted on a failure"

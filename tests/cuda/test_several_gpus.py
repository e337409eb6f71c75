"""Several GPUs train as one does, with whole weights or split ones."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tiny import log_lines, run_together, train, trainer

SETTINGS = ["training.steps=10", "training.batches_per_step=4", "training.class_dropout_prob=0.3", "log.sample_every=5"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_gpus_train_as_one(tmp_path, precision, sharding):
    settings = [*SETTINGS, f"training.precision={precision}"]
    train(tmp_path / "one", *settings)
    run_together(2, train, tmp_path / "two", *settings, f"training.sharding={sharding}", timeout=300)
    for line, other in zip(log_lines(tmp_path / "two"), log_lines(tmp_path / "one"), strict=True):
        assert line == pytest.approx(other, rel=1e-3 if precision == "fp32" else 0.03)
    weights, others = (load_file(tmp_path / run / "model/model.safetensors") for run in ("two", "one"))
    for name, weight in others.items():
        torch.testing.assert_close(weights[name], weight, atol=1e-3 if precision == "fp32" else 0.03, rtol=0)


def train_and_look(run: Path) -> None:
    """Each GPU holds about half of everything that belongs to a weight."""
    split = trainer(run, "training.steps=2", "training.sharding=fsdp")
    split.fit(lambda figures: None)
    optimizer, _ = split.learner.optimizer.parts[0]
    weights = list(split.learner.model.module.parameters())
    moments = [optimizer.state[weight]["exp_avg"] for weight in weights]
    for tensors in (weights, moments, list(split.learner.ema.average.values())):
        assert all(tensor.to_local().is_cuda for tensor in tensors)
        here = sum(tensor.to_local().numel() for tensor in tensors)
        assert here == pytest.approx(sum(tensor.numel() for tensor in tensors) / 2, rel=0.05)


def test_two_gpus_share_what_belongs_to_the_weights(tmp_path):
    run_together(2, train_and_look, tmp_path, timeout=300)

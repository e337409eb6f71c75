"""A training of which the averaged weights are kept at every point, resumable like any other."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import write_text
from ..build import build_base, build_dataset, build_model_config
from ..errors import UserError
from ..training.sigterm import STOPPED
from ..training.trainer import Trainer
from ..training.watch import Diverged
from .definition import Run

# Holds the step at which no gradient was finite any more: a result like any other.
DIVERGED = "diverged.json"
MOST_LOSSES = 200
# What is known of the pictures, so that they need not be read again.
PICTURES = "pictures.json"
# Gets what is under way, how much of it is done, and of how much.
Tell = Callable[[str, int, int], None]


def train(run: Run, points: Sequence[int], folder: Path, tell: Tell) -> None:
    """Trains in `folder` until the last snapshot is there or the training has diverged; SIGTERM ends the program.

    points: the steps of which there are snapshots, the last one among them. A snapshot is written before the checkpoint
    of its step: stopped in between, the step is trained again.
    """
    recipe = run.recipe
    last = recipe.training.steps
    if is_trained(folder, last):
        return
    dataset = build_dataset(recipe.data, recipe.model.patch_size, folder / PICTURES)
    base = build_base(recipe.training)
    trainer = Trainer(recipe, dataset, build_model_config(recipe, dataset, base), folder, base)

    def report(figures: dict[str, Any]) -> None:
        tell("training", figures["step"], last)
        if figures["step"] in points:
            trainer.export(snapshot(folder, figures["step"]))

    try:
        trainer.fit(report)
    except Diverged:
        write_text(folder / DIVERGED, json.dumps({"step": trainer.done}))
    if trainer.stopping:
        sys.exit(STOPPED)


def is_trained(folder: Path, last: int) -> bool:
    return is_whole(snapshot(folder, last)) or has_diverged(folder)


def has_diverged(folder: Path) -> bool:
    return (folder / DIVERGED).is_file()


def snapshot(folder: Path, step: int) -> Path:
    """Where the averaged weights of a step are, as a model folder."""
    return folder / "snapshots" / f"step-{step:08d}"


def is_whole(model: Path) -> bool:
    """The weights are written last."""
    return (model / "model.safetensors").is_file()


def snapshots(points: Sequence[int], folder: Path) -> dict[int, Path]:
    """By step; of a training that diverged, those before. Raises ValueError where one is missing."""
    found = {step: snapshot(folder, step) for step in points}
    missing = [path for path in found.values() if not is_whole(path)]
    if missing and not has_diverged(folder):
        raise UserError(f"there is no model in {missing[0]} any more: remove {folder}, and it is trained again")
    return {step: path for step, path in found.items() if path not in missing}


class TrainingLog:
    """What the log of a training says up to each step; steps count from 1."""

    def __init__(self, folder: Path) -> None:
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_bytes().splitlines()]
        self.images = np.cumsum([line["images"] for line in lines])
        self.seconds = np.cumsum([line["tokens"] / line["tokens_per_second"] for line in lines])
        self.cpu_seconds = np.cumsum([line["cpu_seconds"] for line in lines])
        self.losses = [line["loss"] for line in lines]
        self.skipped = lines[-1]["skipped"]

    def until(self, step: int) -> dict[str, Any]:
        """Pictures seen, and seconds of training steps alone."""
        cpu_seconds = round(float(self.cpu_seconds[step - 1]), 3)
        seconds = round(float(self.seconds[step - 1]), 3)
        return {"images": int(self.images[step - 1]), "seconds": seconds, "cpu_seconds": cpu_seconds}

    def thinned(self) -> list[tuple[int, float]]:
        """At most 200 pairs of a step and the mean loss since the one before; steps without a finite loss left out."""
        edges = np.linspace(0, len(self.losses), min(MOST_LOSSES, len(self.losses)) + 1).round().astype(int).tolist()
        parts = {end: [x for x in self.losses[start:end] if x is not None] for start, end in pairwise(edges)}
        return [(end, round(sum(part) / len(part), 5)) for end, part in parts.items() if part]

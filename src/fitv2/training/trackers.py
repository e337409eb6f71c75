"""Trackers of experiments, which get the figures of a run beside log.jsonl: through accelerate's classes for them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from ..errors import UserError
from ..settings.autoencoder import AutoencoderRecipe
from ..settings.recipe import Recipe
from ..system.atomic import write_text

logger = logging.getLogger(__name__)
# Figures that trackers get, by how their names begin.
TRACKED = ("loss", "grad_norm", "learning_rate", "tokens_per_second", "holdout_loss", "fd", "kid", "accuracy")
# The project of a run at Weights & Biases and Trackio.
PROJECT = "fitv2"
# The file of a run's folder with its id at Weights & Biases.
WANDB_ID = "wandb-id.txt"


def check_packages(names: Sequence[str]) -> None:
    """Raises UserError if the package of a tracker is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise UserError(f"log.trackers: {name} needs the package {name}: pip install {name}")


class Trackers:
    """The trackers of a run. One that fails is dropped with a warning, and the training goes on."""

    def __init__(self, recipe: Recipe | AutoencoderRecipe, run: Path, done: int, device: torch.device) -> None:
        self.running: dict[str, Any] = {}
        if not recipe.log.trackers:
            return
        from accelerate import PartialState

        PartialState(cpu=device.type == "cpu")  # accelerate's trackers want to know the processes.
        for name in recipe.log.trackers:
            self.running[name] = make_tracker(name, run, done, recipe)
        self.each(lambda tracker: tracker.start())

    def log(self, figures: dict[str, Any]) -> None:
        """Takes the figures of a step."""
        chosen = {name: value for name, value in figures.items() if name.startswith(TRACKED)}
        self.each(lambda tracker: tracker.log(chosen, step=figures["step"]))

    def close(self) -> None:
        self.each(lambda tracker: tracker.finish())

    def each(self, work: Callable[[Any], object]) -> None:
        for name, tracker in list(self.running.items()):
            try:
                work(tracker)
            except Exception as error:  # Whatever it is, a run is worth more than its tracker.
                del self.running[name]
                logger.warning("%s failed and gets nothing more (%r); log.jsonl holds every step", name, error)


def make_tracker(name: str, run: Path, done: int, recipe: Recipe | AutoencoderRecipe) -> Any:
    """Returns a tracker that has not started; one of a resumed run continues what it has.

    TensorBoard's drops what it has of steps after `done`; Weights & Biases ignores steps that it has.
    """
    from accelerate import tracking

    if name == "tensorboard":
        return tracking.TensorBoardTracker(name, run, purge_step=done + 1)
    about = {"name": run.resolve().name, "config": recipe.model_dump(mode="json")}
    if name == "wandb":
        return tracking.WandBTracker(PROJECT, dir=run, id=wandb_id(run), resume="allow", **about)
    # Trackio knows runs by their names alone, and another run may have had this one's.
    return tracking.TrackioTracker(PROJECT, resume="allow" if done else "never", **about)


def wandb_id(run: Path) -> str:
    """Returns the id of a run at Weights & Biases, which its folder keeps."""
    path = run / WANDB_ID
    if not path.is_file():
        write_text(path, uuid4().hex)
    return path.read_text().strip()

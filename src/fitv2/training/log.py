"""The run's log: one line of JSON per step, always; trackers by option."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import torch

from ..settings.autoencoder import AutoencoderRecipe
from ..settings.recipe import Recipe
from ..system.atomic import write_text
from .trackers import Trackers

logger = logging.getLogger(__name__)
# In the folder of a run.
LOG = "log.jsonl"


class RunLog:
    """Appends to run/log.jsonl, which then holds each step up to the last exactly once.

    Lines after step `done`, from which training continues, are dropped, and so are damaged ones. The trackers of the
    recipe get the figures, too.
    """

    def __init__(self, run: Path, done: int, recipe: Recipe | AutoencoderRecipe, device: torch.device) -> None:
        path = run / LOG
        run.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            # Only line feeds end a line of JSON; bytes that are no text are damage, which the next line drops.
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
            kept = [line for line in lines if 0 < logged_step(line) <= done]
            if len(kept) < done:
                logger.warning("%s is damaged: %d of the %d steps before are not in it", path, done - len(kept), done)
            write_text(path, "".join(f"{line}\n" for line in kept))
        self.trackers = Trackers(recipe, run, done, device)
        self.file = path.open("a", buffering=1, encoding="utf-8")

    def write(self, figures: dict[str, Any]) -> None:
        # JSON has neither NaN nor infinity.
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        self.file.write(json.dumps(finite) + "\n")
        self.trackers.log(figures)

    def close(self) -> None:
        self.file.close()
        self.trackers.close()


def logged_step(line: str) -> int:
    """Returns the step of a log line; 0 for a damaged line."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return 0
    return step if type(step) is int else 0


def read_log(path: Path) -> list[dict[str, Any]]:
    """Returns the figures of every step in a log.jsonl; damaged lines are left out. Raises OSError."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [json.loads(line) for line in lines if logged_step(line) > 0]

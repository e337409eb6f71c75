"""What a finished run leaves: one JSON file, from which every table and figure is made."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..atomic import write_text
from ..errors import UserError
from ..settings import Settings

LOWER_IS_BETTER = ("distance", "kid")
# By name; None where pictures are not finite.
Scores = dict[str, float | None]


class Point(Settings):
    """Scores at a step, and all that the training had taken until then.

    flops: operations of matrix products, forward and backward. seconds: of training steps alone, as the clock on the
    wall has them; cpu_seconds: the same of all threads, which other work on the machine hardly changes.
    """

    step: int
    images: int
    flops: float
    seconds: float
    cpu_seconds: float
    scores: Scores


class Record(Settings):
    """A run and its result.

    digest, recipe: see `fitv2.study.definition.Run`. settings: all that its scores depend on. machine: what it ran on,
    and the commit of the code. cost: what `plan_figures` says. evaluations: of the network for one picture,
    by condition. points: along the training. final: scores by condition, empty where the training diverged.
    loss: (step, mean since the last one). skipped: steps without a finite gradient.
    """

    study: str
    variant: str
    seed: int
    digest: str
    recipe: dict[str, Any]
    settings: dict[str, Any]
    machine: dict[str, str]
    cost: dict[str, float]
    evaluations: dict[str, int]
    points: tuple[Point, ...]
    final: dict[str, Scores]
    loss: tuple[tuple[int, float], ...]
    skipped: int
    diverged: bool

    @property
    def last(self) -> Point:
        return self.points[-1]

    def score(self, condition: str, name: str) -> float | None:
        """Of the end. Kernel distances of before are not given: they were too low by a bias."""
        if name == "kid" and "kernel" not in self.settings:
            return None
        return self.final.get(condition, {}).get(name)

    @property
    def failed(self) -> bool:
        """Whether the training diverged, or the pictures at its end are not finite."""
        return not self.final or self.last.scores["distance"] is None

    def outcome(self, condition: str, name: str) -> float | None:
        """The same; where the training diverged or the pictures are not finite, infinite: worse than any score.

        None where there is no such score of these models.
        """
        if condition not in self.evaluations:
            return None
        if self.score(condition, "distance") is None:
            return math.inf if name in LOWER_IS_BETTER else -math.inf
        return self.score(condition, name)


# By variant in the order of the study, and by seed.
Records = dict[str, dict[int, Record]]


def paired(records: Records, a: str, b: str, read: Callable[[Record, Record], float | None]) -> list[float]:
    """What `read` makes of the runs of two variants, for each seed that both have; without None and NaN."""
    both = sorted(records[a].keys() & records[b].keys())
    values = [read(records[a][seed], records[b][seed]) for seed in both]
    return [value for value in values if value is not None and not math.isnan(value)]


def write_record(path: Path, record: Record) -> None:
    write_text(path, record.model_dump_json(indent=1) + "\n")


def read_record(path: Path) -> Record:
    """Raises ValueError when it is damaged."""
    try:
        return Record.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path} is damaged ({error.errors()[0]['msg']}); running the study makes it again") from None

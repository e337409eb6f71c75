"""The table of results: one file of JSON lines that every machine appends to, read as one long pandas frame.

The first line is a header. A line of kind "training" describes a finished training: its settings, the digest of its
data, and the code and machine that trained it. Any other line is a figure: variant, seed, step, condition, metric,
value, standard error, number of images, and the code, machine and settings that scored it; `run` names the training.
`equal` is the value with as many samples and real images as real images were compared with others.
Files of several machines are merged by keeping the lines of both.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import UserError
from ..legacy import COSTS
from ..settings.read import build_recipe
from ..system.atomic import write_text
from ..system.hashes import json_digest

logger = logging.getLogger(__name__)
NAME = "results.jsonl"
HEADER = {"table": "fitv2 study", "format": 1}
# Conditions of figures that belong to no final model: points along a training, and what the training took.
CURVE, TRAINING = "curve", "training"
# The variant of figures of real images.
REAL = "real images"
COLUMNS = ["variant", "seed", "step", "condition", "metric", "value", "equal", "error", "n", "range"]
COLUMNS += ["run", "scoring", "scored"]
# What names a figure. The variant does not: studies share trainings under different names.
KEY = ["run", "step", "scoring", "metric"]


def run_id(training: str, settings: dict[str, Any], data: str | None, base: str | None = None) -> str:
    """Names a training by all that decides its weights: its version, all settings, and digests of its data and base."""
    about = {"training": training, "settings": settings, "data": data}
    return json_digest(about if base is None else about | {"base": base})[:16]


class Table:
    """The results in a folder.

    Attributes:
        trainings: The lines of trainings by run.
        same: The run of a training by its id today, which differs if an earlier version knew fewer settings.
        rows: The figures.
        scored: Run, step and scoring of every figure.

    Raises:
        UserError: The file exists and is no table of results.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.trainings: dict[str, dict[str, Any]] = {}
        self.same: dict[str, str] = {}
        self.rows: list[dict[str, Any]] = []
        self.scored: set[tuple[str, int, str]] = set()
        if self.path.exists():
            self._take(self._read())

    def _read(self) -> Iterator[dict[str, Any]]:
        first, *lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        if first != json.dumps(HEADER):
            raise UserError(f"{self.path} is no table of results of fitv2 study: move it, or choose another --out")
        for number, line in enumerate(lines, 2):
            try:
                if line:
                    yield json.loads(line)
            except ValueError:  # A kill may have left a part of a line, and a merge its marks.
                logger.warning("line %d of %s is damaged and is ignored", number, self.path)

    def _take(self, lines: Iterable[dict[str, Any]]) -> None:
        for line in lines:
            if line.get("kind") != "training":
                self.rows.append(line)
                self.scored.add((line["run"], line["step"], line["scoring"]))
            elif line["run"] not in self.trainings:
                self.trainings[line["run"]] = {COSTS.get(key, key): value for key, value in line.items()}
                try:
                    settings = build_recipe(line["settings"]).model_dump(mode="json", exclude={"log"})
                except UserError:  # Settings of an earlier version that are no longer accepted.
                    continue
                training = run_id(line["training"], settings, line["data"], line.get("base"))
                self.same.setdefault(training, line["run"])

    def append(self, lines: list[dict[str, Any]]) -> None:
        """Adds lines to the file and to what has been read."""
        if not self.path.exists():
            write_text(self.path, json.dumps(HEADER) + "\n")
        text = "".join(json.dumps(line) + "\n" for line in lines)
        with self.path.open("rb+") as file:
            file.seek(-1, 2)
            whole = file.read() == b"\n"
            file.write(("" if whole else "\n").encode() + text.encode())
        self._take(lines)

    def run_of(self, training: str) -> str:
        """The run under which a training of this id is in the table, or would be."""
        return training if training in self.trainings else self.same.get(training, training)

    def has(self, training: str, step: int, scoring: str) -> bool:
        """Whether there are the scores of a training of this id."""
        return (self.run_of(training), step, scoring) in self.scored

    @property
    def speed(self) -> float | None:
        """FLOPs a second of one training, over all of them; None before the first one."""
        flops, seconds = (sum(r["value"] for r in self.rows if r["metric"] == key) for key in ("operations", "wall"))
        return flops / seconds if seconds else None

    @property
    def frame(self) -> pd.DataFrame:
        """All figures, one a row, with the line of their training in the column `trained`; None is NaN in `value`."""
        frame = pd.DataFrame(self.rows, columns=COLUMNS)
        frame = frame[~frame[KEY].assign(real=frame["variant"] == REAL).duplicated()]
        numbers = {key: pd.to_numeric(frame[key]) for key in ("value", "equal")}
        return frame.assign(**numbers, trained=frame["run"].map(self.trainings))

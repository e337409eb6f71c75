"""Reads what the commands of a study leave in their folders, as lines of the table of results."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import UserError
from ..system.provenance import provenance
from ..training.log import LOG
from ..training.run_folder import kept_provenance
from ..training.watch import MOST_SKIPPED
from .results import CURVE, REAL, TRAINING
from .runs import SCORING_VERSION, Run, Scoring

# The most bytes of a line in the log.
LONGEST_LINE = 4096
# The figures of result.json that enter the table.
FIGURES = ("fd", "kid", "accuracy", "precision", "recall", "density", "coverage")
# The costs in the line of a training.
COSTS = ("parameters", "images", "epochs", "images_per_step", "tokens_per_image")


def last_log_lines(folder: Path, number: int) -> list[dict[str, Any]]:
    """The last lines in the log of a training, without one that is still being written; empty before the first step."""
    try:
        with (folder / LOG).open("rb") as file:  # Read again and again, and up to hundreds of megabytes long.
            file.seek(max(0, file.seek(0, os.SEEK_END) - (number + 1) * LONGEST_LINE))
            whole = file.read().rpartition(b"\n")[0]
        return [json.loads(line) for line in whole.splitlines()[-number:]]
    except OSError:
        return []
    except ValueError as error:
        raise UserError(f"{folder / LOG} is damaged ({error}): remove {folder}") from None


def has_diverged(folder: Path) -> bool:
    """Whether the last steps in the log of a training had no finite gradient, which ends it."""
    # The very last one ends the training before it is logged.
    last = last_log_lines(folder, MOST_SKIPPED - 1)
    return len(last) == MOST_SKIPPED - 1 and all(line["grad_norm"] is None for line in last)


def training_lines(run: Run, folder: Path) -> list[dict[str, Any]]:
    """A training, and what it took up to each point."""
    log = pd.read_json(folder / LOG, lines=True).set_index("step")
    log["wall"] = log["tokens"] / log["tokens_per_second"]
    log["operations"] = run.costs["flops_per_step"]
    taken = log[["images", "wall", "cpu_seconds", "operations"]].cumsum().round(3).to_dict("index")
    steps = sorted({scoring.step for scoring in run.scorings} & taken.keys())
    figures = [(step, key, float(value)) for step in steps for key, value in taken[step].items()]
    if has_diverged(folder):
        figures.append((int(log.index.max()), "diverged", 1.0))
    about = {"run": run.id, "variant": run.variant, "seed": run.seed}
    row = about | {"condition": TRAINING, "scoring": TRAINING, "error": None, "n": None, "scored": None}
    line = about | {"kind": "training", "tuned": run.tuned, "by": kept_provenance(folder)} | run.identity
    line |= {key: run.costs[key] for key in COSTS}
    return [line, *(row | {"step": step, "metric": key, "value": value} for step, key, value in figures)]


def score_lines(run: Run, scoring: Scoring, result: Path | None, recorded: str) -> list[dict[str, Any]]:
    """The scores of a model, and those of real images.

    Args:
        run: The training.
        scoring: What was scored.
        result: The result.json of the command, or None if the model or its images are not finite.
        recorded: The run in the table.

    Raises:
        UserError: The file is no result of `fitv2 evaluate` of that size.
    """
    row = {"run": recorded, "variant": run.variant, "seed": run.seed, "step": scoring.step, "error": None}
    row |= {"condition": scoring.name, "scoring": run.scoring_id(scoring), "n": scoring.images}
    scored = {"settings": row["scoring"], "version": SCORING_VERSION}
    if result is None:
        return [row | {"scored": provenance() | scored, "metric": "fd", "value": None}]
    try:
        content = json.loads(result.read_bytes())
        (found,) = (one for one in content["results"] if one["stamp"]["size"] == scoring.condition.size)
        stamp, scores, real, equal = found["stamp"], found["scores"], found["real"], found.get("equal", {})
        scored |= content["provenance"] | {"size": stamp["size"], "sampling": stamp["sampling"]}
        scored |= {"reference": stamp["reference_sha256"][:16]}
        scored |= {"score": stamp["names"]["fd"], "extractor": stamp["extractor_sha256"][:16]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{result} is no result of fitv2 evaluate ({error!r}): remove it") from None
    row["scored"] = scored
    lines = []
    for key in (key for key in FIGURES if key in scores):
        figures = {"value": scores[key], "equal": equal.get(key), "error": scores.get(f"{key}_error")}
        lines.append(row | {"metric": key} | figures)
        if key in real and scoring.name != CURVE and run.seed == 0:
            about = {"variant": REAL, "n": real.get("drawn"), "range": real.get(f"{key}_range")}
            lines.append(row | about | {"metric": key, "value": real[key]})
    return lines

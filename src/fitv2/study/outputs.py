"""Reads what the commands of a study leave in their folders, as lines of the table of results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import UserError
from ..provenance import provenance
from ..training.run_folder import kept_provenance
from ..training.watch import MOST_SKIPPED
from .results import CURVE, REAL, TRAINING
from .runs import SCORING_VERSION, Run, Scoring

LOG, RESULT = "log.jsonl", "result.json"
# The figures of result.json that enter the table.
FIGURES = ("fd", "kid", "accuracy", "precision", "recall", "density", "coverage")
# The costs in the line of a training.
COSTS = ("parameters", "images", "epochs", "images_per_step", "tokens_per_image")


def log_lines(folder: Path) -> list[dict[str, Any]]:
    """The log of a training, without a line that is still being written; empty before the first step."""
    try:
        return [json.loads(line) for line in (folder / LOG).read_text().rpartition("\n")[0].splitlines()]
    except OSError:
        return []
    except ValueError as error:
        raise UserError(f"{folder / LOG} is damaged ({error}): remove {folder}") from None


def has_diverged(folder: Path) -> bool:
    """Whether the last steps in the log of a training had no finite gradient, which ends it."""
    # The very last one ends the training before it is logged.
    last = log_lines(folder)[1 - MOST_SKIPPED :]
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


def score_lines(run: Run, scorings: Sequence[Scoring], result: Path | None, recorded: str) -> Iterator[dict[str, Any]]:
    """The scores of one command.

    Args:
        run: The training.
        scorings: What the command scored.
        result: Its result.json, or None if the images were not finite.
        recorded: The run in the table.
    """
    found = {} if result is None else read_result(result)
    for scoring in scorings:
        row = {"run": recorded, "variant": run.variant, "seed": run.seed, "step": scoring.step}
        row |= {"condition": scoring.name, "scoring": run.scoring_id(scoring), "n": scoring.images, "error": None}
        scores, real, about = found.get(scoring.condition.size, ({"fd": None}, {}, {}))
        row["scored"] = provenance() | about | {"settings": row["scoring"], "version": SCORING_VERSION}
        for key in (key for key in FIGURES if key in scores):
            yield row | {"metric": key, "value": scores[key], "error": scores.get(f"{key}_error")}
            if key in real and scoring.name != CURVE and run.seed == 0:
                told = {"variant": REAL, "n": real.get("drawn"), "range": real.get(f"{key}_range")}
                yield row | told | {"metric": key, "value": real[key]}


def read_result(path: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """The scores of samples and of real images in a result.json by size, and what made them.

    Raises UserError if it is no result of `fitv2 evaluate`.
    """
    try:
        content = json.loads(path.read_bytes())
        found = {}
        for result in content["results"]:
            stamp = result["stamp"]
            about = content["versions"] | {"reference": stamp["reference_sha256"][:16]}
            about |= {"score": stamp["names"]["fd"], "extractor": stamp["extractor_sha256"][:16]}
            found[stamp["size"]] = result["scores"], result["real"], about
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no result of fitv2 evaluate ({error!r}): remove it") from None

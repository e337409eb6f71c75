"""What the commands of a study leave in their folders, as lines of the table of results."""

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
# Bytes of a line in the log of a training, at most.
LONGEST_LINE = 4096
# The figures of result.json that enter the table.
FIGURES = ("fd", "kid", "accuracy", "precision", "recall", "density", "coverage")
# The costs of a training that are told beside it.
ABOUT = ("parameters", "images", "epochs", "images_per_step", "tokens_per_image")


def training_lines(run: Run, folder: Path) -> list[dict[str, Any]]:
    """A training, and what it took up to each point."""
    log = pd.read_json(folder / LOG, lines=True).set_index("step")
    log["wall"] = log["tokens"] / log["tokens_per_second"]
    log["operations"] = run.costs["flops_per_step"]
    taken = log[["images", "wall", "cpu_seconds", "operations"]].cumsum().round(3).to_dict("index")
    steps = sorted({scoring.step for scoring in run.scorings()} & taken.keys())
    figures = [(step, key, float(value)) for step in steps for key, value in taken[step].items()]
    if has_diverged(folder):
        figures.append((int(log.index.max()), "diverged", 1.0))
    about = {"run": run.id, "variant": run.variant, "seed": run.seed}
    row = about | {"condition": TRAINING, "scoring": TRAINING, "error": None, "n": None, "scored": None}
    line = about | {"kind": "training", "tuned": run.tuned, "by": kept_provenance(folder)} | run.identity
    line |= {key: run.costs[key] for key in ABOUT}
    return [line, *(row | {"step": step, "metric": key, "value": value} for step, key, value in figures)]


def score_lines(run: Run, scorings: Sequence[Scoring], result: Path | None, recorded: str) -> Iterator[dict[str, Any]]:
    """The scores of one command; result: its result.json, or None if the images were not finite."""
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


def has_diverged(folder: Path) -> bool:
    """Whether the last steps in the log of a training had no finite gradient, which ends it."""
    try:
        # The very last one ends the training before it is logged.
        lines = (folder / LOG).read_text().splitlines()[1 - MOST_SKIPPED :]
        return len(lines) == MOST_SKIPPED - 1 and all(json.loads(line)["grad_norm"] is None for line in lines)
    except (OSError, ValueError, KeyError):
        return False


def last_step(folder: Path) -> int:
    """The last step in the log of a training; 0 before the first one."""
    try:
        with (folder / LOG).open("rb") as file:
            file.seek(max(0, (folder / LOG).stat().st_size - LONGEST_LINE))
            return int(json.loads(file.read().splitlines()[-1])["step"])
    except (OSError, ValueError, KeyError, IndexError):
        return 0

"""Converts the records of earlier versions of `fitv2 study`, STUDY/runs/*.json, into a table of results.

    python tools/convert_records.py studies OUT

reads studies/*/runs and studies/*/real.json and writes OUT/results.jsonl. Records said what scored a model and nothing
of what trained it, so the trainings have no provenance. Kernel distances that were too low by a bias are left out, and
so are the curves of the loss.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from fitv2.study.results import CURVE, REAL, TRAINING, Table
from fitv2.system.hashes import json_digest

METRICS = {"distance": "fd", "recognised": "accuracy"}
COSTS = {"images": "images", "flops": "operations", "seconds": "wall", "cpu_seconds": "cpu_seconds"}
ABOUT = ("parameters", "pictures", "epochs", "pictures_per_step", "tokens_per_picture")


def lines_of(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The training of a record, and its figures."""
    settings, final = record["settings"], record["final"]
    training = settings.get("training", "training-1")
    # The same training was scored again by each study, so it is another one in each.
    run = json_digest([record["study"], record["digest"], training])[:16]
    about = {"kind": "training", "run": run, "variant": record["variant"], "seed": record["seed"], "tuned": None}
    about |= {"training": training, "settings": record["recipe"], "data": None, "by": []}
    yield about | {key: record["cost"][key] for key in ABOUT}
    row = {"variant": record["variant"], "seed": record["seed"], "run": run, "error": None, "n": None}
    for point in record["points"]:
        taken = row | {"step": point["step"], "condition": TRAINING, "scoring": TRAINING, "scored": None}
        yield from (taken | {"metric": new, "value": point[old]} for old, new in COSTS.items())
    scored = record["machine"] | {"study": record["study"], "protocol": settings["protocol"]}
    row |= {"step": record["recipe"]["training"]["steps"], "scored": scored}
    if record["diverged"]:
        yield row | {"condition": TRAINING, "scoring": TRAINING, "metric": "diverged", "value": 1.0}
    scores = [(p["step"], CURVE, settings["images"], p["scores"]) for p in record["points"]]
    scores += [(row["step"], name, settings["final_images"], found) for name, found in final.items()]
    for step, condition, images, found in scores:
        scoring = json_digest([record["study"], settings, condition])[:16]
        for key, value in found.items():
            if key == "kid" and "kernel" not in settings:
                continue
            told = {"step": step, "condition": condition, "n": images, "scoring": scoring}
            yield row | told | {"metric": METRICS.get(key, key), "value": value}


def real_lines(real: dict[str, Any], like: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What real images score, the mean and the range of the draws; like: a row of a model under the same condition."""
    place = real["places"][like["condition"].split(",")[0]]
    row = like | {"variant": REAL, "n": real["settings"]["images"], "error": None}
    for key in place["draws"][0]:
        values = [draw[key] for draw in place["draws"]]
        yield row | {"metric": METRICS.get(key, key), "value": fmean(values), "range": [min(values), max(values)]}
    yield row | {"metric": "accuracy", "value": place["recognised"]}


def convert(records: Path, out: Path) -> int:
    """Writes the table; returns the number of its figures. Raises UserError if there is one that is no table."""
    table = Table(out)
    for folder in sorted(path.parent for path in records.glob("*/runs")):
        real = json.loads((folder / "real.json").read_bytes())
        seen: set[str] = set()
        for path in sorted(folder.glob("runs/*.json")):
            lines = list(lines_of(json.loads(path.read_bytes())))
            final = {line["condition"]: line for line in lines[1:] if line["condition"] not in (CURVE, TRAINING)}
            for condition in final.keys() - seen:
                lines += real_lines(real, final[condition])
            seen |= final.keys()
            table.append(lines)
    return len(table.rows)


if __name__ == "__main__":
    print(f"{convert(Path(sys.argv[1]), Path(sys.argv[2])):,} figures")

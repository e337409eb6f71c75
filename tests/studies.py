"""A tiny study, its data, and figures and commands made up for it, for the tests of studies."""

from __future__ import annotations

import atexit
import json
import os
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from fitv2.settings.read import load_recipe
from fitv2.study.definition import Study
from fitv2.study.loading import build_study
from fitv2.study.queue import CommandFailed, Queue
from fitv2.study.results import CURVE, REAL, TRAINING, Table
from fitv2.study.runs import Run, runs_of
from tiny import CLASSES, garments

TREE: dict[str, Any] = {
    "title": "A title",
    "question": "A question?",
    "set": {
        **{"model.width": 16, "model.depth": 1, "training.steps": 4, "training.max_tokens_per_batch": 256},
        **{"training.warmup_steps": 0, "training.precision": "no"},
    },
    "seeds": 2,
    "variants": {"FiT": {"about": "the first", "set": {"model.architecture": "FiT"}}, "FiTv2": {"about": "the second"}},
    "evaluation": {
        **{"points": [2], "images": 40, "final_images": 40, "conditions": {"own": {"guidance": 1}}},
        "samplers": {"velocity": {"solver": "euler", "steps": 1}, "epsilon": {"solver": "ddim", "steps": 1}},
    },
    "claims": [
        {
            "text": "faster",
            "paper": "2 times",
            "measure": {"kind": "faster", "of": "FiTv2", "than": "FiT", "at_least": 2},
        },
        {"text": "better", "paper": "yes", "measure": {"kind": "better", "of": "FiTv2", "than": "FiT"}},
    ],
}


@cache
def home() -> Path:
    """A folder for as long as the process: 120 grey images by class, and the recipe that all studies here take."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    os.environ["FITV2_CACHE"] = f"{folder.name}/cache"  # Where the sizes of these images are kept.
    made = garments(120)
    for number, (image, label) in enumerate(zip(made.images, made.labels, strict=True)):
        path = Path(folder.name) / "images" / CLASSES[label] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    recipe = load_recipe("fashion-study").model_dump(mode="json", exclude={"data"}, exclude_defaults=True)
    data = {"source": f"{folder.name}/images", "channels": 1, "max_tokens": 25, "flip": False}
    Path(folder.name, "recipe.yaml").write_text(yaml.safe_dump(recipe | {"data": data}))
    return Path(folder.name)


def tree(**changes) -> dict[str, Any]:
    evaluation = {"reference": str(home() / "images")} | TREE["evaluation"] | changes.pop("evaluation", {})
    return {"recipe": str(home() / "recipe.yaml")} | TREE | changes | {"evaluation": evaluation}


def study_of(*measures: dict[str, Any], variants: Sequence[str] = "ab", **changes) -> Study:
    """A study of these variants, with a claim for each measure."""
    claims = [{"text": str(number), "paper": "", "measure": measure} for number, measure in enumerate(measures)]
    # Their settings differ, as those of two variants must.
    rates = {v: {"training.learning_rate": 1e-3 / (1 + number)} for number, v in enumerate(variants)}
    known = {v: {"about": v, "set": rates[v]} for v in variants if v != REAL}
    return build_study(tree(variants=known, claims=claims, **changes), "made up")


def frame(condition: str = "own", metric: str = "fd", **scores: list[float | None]) -> pd.DataFrame:
    """Final figures, a list of one a seed for each variant."""
    rows = [
        {"variant": v, "seed": seed, "step": 400, "condition": condition, "metric": metric, "value": value}
        for v, values in scores.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows).astype({"value": float})


def curves(**scores: list[list[float]]) -> pd.DataFrame:
    """Curves with points every 100 steps of 1e9 operations, one a seed for each variant."""
    rows = []
    for variant, of_seeds in scores.items():
        for seed, values in enumerate(of_seeds):
            for step, value in zip(np.arange(1, len(values) + 1) * 100, values, strict=True):
                row = {"variant": variant, "seed": seed, "step": int(step)}
                rows.append(row | {"condition": CURVE, "metric": "fd", "value": value})
                rows.append(row | {"condition": TRAINING, "metric": "operations", "value": 1e9 * step})
    return pd.DataFrame(rows)


def diverged(table: pd.DataFrame, variant: str, seeds: int) -> pd.DataFrame:
    """The same, but the first seeds of a variant have diverged and have no scores."""
    gone = (table["variant"] == variant) & (table["seed"] < seeds)
    rows = [
        {"variant": variant, "seed": seed, "step": 90, "condition": TRAINING, "metric": "diverged", "value": 1.0}
        for seed in range(seeds)
    ]
    return pd.concat([table[~gone], pd.DataFrame(rows)], ignore_index=True)


PROVENANCE = {"fitv2": "0", "commit": "c0ffee", "torch": "0", "device": "CPU", "threads": 1}


class MadeUp(Queue):
    """Writes at once what the commands would write; fails with a sentence if it is told to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Table(folder), folder / "work", 1, lambda run: folder / "tiny/sheets")
        self.failing: dict[str, str] = {}
        self.ran: list[tuple[str, str]] = []

    def command(self, words, folder, name):
        self.ran.append((words[0], name))
        folder.mkdir(parents=True, exist_ok=True)
        if said := self.failing.get(words[0]):
            raise CommandFailed(f"{name} failed: {said}")
        self.write_training(words, folder) if words[0] == "train" else self.write_scores(words)

    def write_training(self, words, folder: Path) -> None:
        settings = dict(word.split("=", 1) for word in words if "=" in word)
        points, steps = json.loads(settings.get("log.export_at", "[]")), int(settings["training.steps"])
        self.write_log(folder, steps, loss=1, grad_norm=1, images=3, tokens=10, tokens_per_second=10, cpu_seconds=2)
        (folder / "provenance.json").write_text(json.dumps([PROVENANCE | {"from_step": 0}]))
        models = {step: folder / f"exports/step-{step:08d}" for step in points} | {steps: folder / "model"}
        for step, model in models.items():
            model.mkdir(parents=True)
            (model / "config.json").write_text(json.dumps({"step": step}))
            (model / "model.safetensors").touch()

    def write_log(self, folder: Path, steps: int, **figures: float | None) -> None:
        lines = [json.dumps({"step": step} | figures) + "\n" for step in range(1, steps + 1)]
        (folder / "log.jsonl").write_text("".join(lines))

    def write_scores(self, words) -> None:
        given = dict(zip(words[2::2], words[3::2], strict=True))
        stamp = {"reference_sha256": "r" * 64, "extractor_sha256": "e" * 64, "names": {"fd": "FD-garments"}}
        scores = {"fd": 2.0 + int(given["--seed"]) + ("step-00000002" in words[1]), "kid": 0.1, "kid_error": 0.01}
        real = {"fd": 0.5, "fd_range": [0.4, 0.6], "kid": 0.1, "drawn": 20}
        result = {"stamp": stamp | {"size": given["--size"], "sampling": {"steps": 7}}, "scores": scores, "real": real}
        result["equal"] = {"fd": 0.7, "kid": 0.2}
        out = Path(given["--out"])
        out.mkdir(parents=True)
        (out / "result.json").write_text(
            json.dumps({"provenance": PROVENANCE | {"commit": "scorer"}, "results": [result]})
        )
        (out / f"sheet-{given['--size']}-at-1.png").write_text(given["--size"])


def work_off(queue: MadeUp, **changes) -> tuple[list[Run], list[str]]:
    runs = runs_of(build_study(tree(**changes), "tiny"), queue.table)
    return runs, queue.work_off(runs, 1, lambda left: None)

"""A tiny study, its data, and figures made up for it, for the tests of studies."""

from __future__ import annotations

import atexit
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from fitv2.config import load_recipe
from fitv2.study.definition import Study, build_study
from fitv2.study.results import CURVE, REAL, TRAINING
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
    known = {v: {"about": v} for v in variants if v != REAL}
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

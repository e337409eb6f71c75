"""A tiny study, its data, and its runs, for the tests of studies."""

from __future__ import annotations

import atexit
import tempfile
from functools import cache
from pathlib import Path

import yaml
from PIL import Image

from fitv2.config import load_recipe
from fitv2.study.definition import Run, build_study
from fitv2.study.job import Job
from tiny import CLASSES, garments

SQUARE, OWN = {"data.preprocessing": "crop"}, {"data.preprocessing": "resize"}
TREE = {
    "title": "A title",
    "question": "A question?",
    "set": {
        **{"model.width": 16, "model.depth": 1, "training.steps": 4, "training.max_tokens_per_batch": 256},
        **{"training.warmup_steps": 0, "training.precision": "fp32"},
    },
    "seeds": 2,
    "variants": {
        "FiT": {"about": "the first", "set": {"model.architecture": "FiT"}},
        "FiTv2": {"about": "the second"},
    },
    "evaluation": {
        **{"points": [2], "images": 20, "final_images": 30, "views": {"square": SQUARE}},
        "samplers": {"velocity": {"solver": "euler", "steps": 1}, "noise": {"solver": "ddim", "steps": 1}},
    },
    "claims": [
        {
            "text": "faster",
            "paper": "2 times",
            "measure": {"kind": "speed-up", "baseline": "FiT", "contender": "FiTv2", "at_least": 2},
        },
        {"text": "better", "paper": "yes", "measure": {"kind": "difference", "of": "FiTv2", "to": "FiT"}},
    ],
    "imagenet": "Elsewhere.",
}
BOTH = {"views": {"square": SQUARE, "own": OWN}}
FURTHER = [
    {"view": "own", "guidance": 1, "size": "24x16", "extrapolation": "vision-ntk", "attention_scale": "paper"},
    {"view": "square", "guidance": 1, "sampler": {"solver": "heun", "steps": 3}},
    {"view": "own", "guidance": 2, "size": "20x20"},
]
SIT = {"about": "a grid", "set": {"model.architecture": "SiT", "data.preprocessing": "crop"}}


@cache
def home() -> Path:
    """A folder for as long as the process: sixty grey pictures by class, and the recipe that all studies here take."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    made = garments(60)
    for number, (picture, label) in enumerate(zip(made.pictures, made.labels, strict=True)):
        path = Path(folder.name) / "pictures" / CLASSES[label] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    recipe = load_recipe("fashion-study").model_dump(mode="json", exclude={"data"}, exclude_defaults=True)
    data = {"source": f"{folder.name}/pictures", "channels": 1, "max_tokens": 25, "flip": False}
    Path(folder.name, "recipe.yaml").write_text(yaml.safe_dump(recipe | {"data": data}))
    return Path(folder.name)


def tree(**changes) -> dict:
    return {"recipe": str(home() / "recipe.yaml")} | TREE | changes


def nothing(what: str, done: int, total: int) -> None:
    """Nobody is told."""


def job(work: Path, variant: str = "FiTv2", seed: int = 0, **changes) -> Job:
    study = build_study(tree(**changes), "tiny")
    run = Run(variant, seed, study.recipe_of(variant, seed))
    return Job("tiny", study, run, work.parent / "studies/tiny", work)

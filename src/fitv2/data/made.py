"""Recognises folders that fitv2 itself wrote: the images in them are its output, never data."""

from __future__ import annotations

import re
from collections.abc import Collection

from ..sample_list import DRAFT, SAMPLES_LIST, SHEET

RUN, PREPARED, SAMPLES = "a training run", "prepared data", "samples"
# What a folder is, by the names in it: every name of a set must be there.
MARKS: list[tuple[str, set[str]]] = [
    (RUN, {"recipe.json", "checkpoints"}),
    (RUN, {"recipe.json", "samples"}),
    (RUN, {"recipe.json", "log.jsonl"}),
    (RUN, {"recipe.json", "model"}),
    (PREPARED, {"settings.json", "shards"}),
    ("an inspection", {"pictures.csv", "plots.png"}),
    ("an evaluation", {"result.json", "scores.png"}),
    ("an evaluation", {"evaluation.json"}),
    ("a study", {"result.json", "final.png"}),
    ("a study", {"runs", "sheets"}),
    ("a study", {"forest.png", "README.md"}),
]
SAMPLE = re.compile(r".+_\d+x\d+_seed\d+\.png")


def is_sample(name: str) -> bool:
    """Whether a file of a folder of samples is one of them, or their sheet."""
    return name == SHEET or SAMPLE.fullmatch(name) is not None


def made_by_fitv2(names: Collection[str]) -> str | None:
    """What a folder with these names is, if fitv2 made it; None for all other folders."""
    for what, marks in MARKS:
        if marks.issubset(names):
            return what
    listed = not {SHEET, SAMPLES_LIST, DRAFT}.isdisjoint(names)
    return SAMPLES if listed and any(map(SAMPLE.fullmatch, names)) else None

"""Whether the shards of a data set are still as they were written, and hold numbers that can be trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError

from ..data.prepared import SHARDS, read_dataset, read_index
from .shards import not_finite


@dataclass
class Verified:
    """damaged: Shards that are gone or have another hash than dataset.json says. not_finite: The ids of images whose
    latents hold NaN or infinity.
    """

    damaged: list[str] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)


def verify(folder: Path, done: Callable[[int], None]) -> Verified:
    """Reads every shard; `done` gets the number just read. Raises UserError for an unfinished set."""
    dataset = read_dataset(folder)[1]
    found, contents = Verified(), set()
    for shard in dataset["shards"]:
        path = folder / SHARDS / shard["file"]
        try:
            with path.open("rb") as file:
                whole = hashlib.file_digest(file, "sha256").hexdigest() == shard["sha256"]
            contents |= {name.partition(".")[0] for name in not_finite(path)} if whole else set()
        except (OSError, SafetensorError):
            whole = False
        if not whole:
            found.damaged.append(shard["file"])
        done(1)
    if contents:
        found.not_finite = [line["id"] for line in read_index(folder, dataset) if line.get("sha256") in contents]
    return found

"""Whether the shards of a data set are still as they were written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from ..data.prepared import SHARDS, read_dataset


def damaged_shards(folder: Path, done: Callable[[int], None]) -> list[str]:
    """The shards that are gone or have another hash than dataset.json says. Raises ValueError for an unfinished set."""
    damaged = []
    for shard in read_dataset(folder)[1]["shards"]:
        try:
            with (folder / SHARDS / shard["file"]).open("rb") as file:
                whole = hashlib.file_digest(file, "sha256").hexdigest() == shard["sha256"]
        except OSError:
            whole = False
        if not whole:
            damaged.append(shard["file"])
        done(1)
    return damaged

"""The folder of an evaluation: each has its own, so that no result overwrites another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..atomic import write_text
from ..errors import UserError
from ..hashes import json_digest
from ..locks import locked

ABOUT, RESULT, PLOT = "evaluation.json", "result.json", "scores.png"
WRITTEN = (RESULT, PLOT, "sheet-*.png", "samples-*.npz")


def own_folder(root: Path, name: str, about: dict[str, Any]) -> Path:
    """The folder below `root`: the name of what is evaluated, and a digest of everything that decides the result."""
    return root / f"{name}-{json_digest(about)[:12]}"


@contextmanager
def claimed(folder: Path, about: dict[str, Any]) -> Iterator[None]:
    """Reserves the folder for an evaluation; the same evaluation may write there again.

    about: everything that decides the result. Raises UserError if another process evaluates there, or if the folder
    holds the result of another evaluation or files that no evaluation wrote.
    """
    with locked(folder, "an evaluation"):
        path, text = folder / ABOUT, json.dumps(about, indent=1, sort_keys=True)
        known = path.is_file()
        if known and (folder / RESULT).exists() and (changed := differences(path, about)):
            raise UserError(
                f"{folder} holds another evaluation, with another {' and '.join(changed)}: choose another --out, "
                "or omit --out to give each evaluation its own folder"
            )
        if not known and (there := sorted(file for name in WRITTEN for file in folder.glob(name))):
            raise UserError(f"{there[0]} is not of this evaluation and might be overwritten: choose another --out")
        write_text(path, text)
        yield


def differences(path: Path, about: dict[str, Any]) -> list[str]:
    """The keys whose values differ from those in the file."""
    try:
        known = json.loads(path.read_bytes())
        return [key for key in known | about if known.get(key) != json.loads(json.dumps(about.get(key)))]
    except (ValueError, TypeError, AttributeError):
        return ["content"]

"""The folder of an evaluation: one for each, so that no result takes the place of another."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
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
    """Below `root`, by the name of what is evaluated and all that decides the result."""
    return root / f"{name}-{json_digest(about)[:12]}"


@contextmanager
def claimed(folder: Path, about: dict[str, Any]) -> Iterator[None]:
    """Holds the folder for an evaluation; the same one may write there again.

    about: all that decides the result. Raises UserError where another process evaluates there, the folder holds the
    result of another evaluation, or files that no evaluation wrote.
    """
    with locked(folder, "an evaluation"):
        path, text = folder / ABOUT, json.dumps(about, indent=1, sort_keys=True)
        known = path.is_file()
        if known and (folder / RESULT).exists() and (changed := differences(path, about)):
            raise UserError(
                f"{folder} holds another evaluation, with another {' and '.join(changed)}: choose another --out, "
                "or leave it out, and each evaluation has its own folder"
            )
        if not known and (there := sorted(file for name in WRITTEN for file in folder.glob(name))):
            raise UserError(f"{there[0]} is not of this evaluation and might be overwritten: choose another --out")
        write_text(path, text)
        yield


def differences(path: Path, about: dict[str, Any]) -> list[str]:
    """What is not as the file says."""
    try:
        known = json.loads(path.read_bytes())
        return [key for key in known | about if known.get(key) != json.loads(json.dumps(about.get(key)))]
    except (ValueError, TypeError, AttributeError):
        return ["content"]


def refuse_among(out: Path, folders: Iterable[str]) -> None:
    """Raises UserError where results would lie among the images of one of the folders, and count as such."""
    for name in folders:
        if Path(name).is_dir() and out.resolve() == Path(name).resolve():
            raise UserError(f"--out {out} is the folder of the images themselves: name another one")

"""Whose folder of results is whose: no study overwrites another one's files, nor anybody else's."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..atomic import write_text
from ..errors import UserError
from ..locks import LOCK
from ..yaml_text import read_yaml
from .definition import Study

PAGE, RESULT, REAL, RUNS, SHEETS = "README.md", "result.json", "real.json", "runs", "sheets"
CURVES, FINAL = "curves.png", "final.png"
# All that a study writes into its folder besides a copy of its file.
WRITTEN = (PAGE, RESULT, REAL, RUNS, SHEETS, CURVES, FINAL)
# The first line of every page.
MARK = "<!-- Written by fitv2 study, which overwrites this file. -->"
# How lines of pages begin that a study wrote, today and before.
MARKS = (MARK.encode(), b"Written by the command below from the JSON files", b"Written by `fitv2 study NAME --report`")


def write_page(path: Path, lines: Iterable[str]) -> None:
    """A page as Markdown. Raises UserError where there is one that no study wrote."""
    refuse_foreign_page(path)
    write_text(path, "\n".join([MARK, *lines]) + "\n")


def refuse_foreign_page(path: Path) -> None:
    if path.exists() and not is_page(path):
        raise UserError(
            f"{path} was not written by fitv2 study and would be overwritten: choose another --out, or move it"
        )


def is_page(path: Path) -> bool:
    """Whether a study wrote it, also one of before the mark."""
    return path.is_file() and any(line.startswith(MARKS) for line in path.read_bytes().splitlines()[:20])


def read_result(path: Path) -> dict[str, Any] | None:
    """A study's own result; None for any other file of that name, of an evaluation for example, and for none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and {"study", "claims", "runs"} <= content.keys() else None


def refuse_foreign_report(folder: Path) -> None:
    """Raises UserError where the folder has a page or a result that no study wrote."""
    refuse_foreign_page(folder / PAGE)
    if (folder / RESULT).exists() and read_result(folder / RESULT) is None:
        raise UserError(f"{folder / RESULT} is no result of a study and would be overwritten: choose another --out")


def refuse_foreign(folder: Path) -> None:
    """Raises UserError where the folder holds files, by names that a study writes, which none has written."""
    refuse_foreign_report(folder)
    there = [name for name in WRITTEN if (folder / name).exists()]
    if there and not ({PAGE, RESULT} & {*there} or (folder / LOCK).exists()):
        raise UserError(f"{folder / there[0]} is of no study and would be overwritten: choose another --out")


def refuse_fewer_seeds(folder: Path, seeds: int) -> None:
    """Raises UserError where a report of so many seeds would take the place of one of more."""
    known = read_result(folder / RESULT) or {"runs": {}}
    most = max(map(len, known["runs"].values()), default=0)
    if most > seeds:
        raise UserError(
            f"{folder} has the results of {most} seeds, which those of {seeds} would replace: leave --seeds out, or "
            "choose another --out"
        )


def copy_of(folder: Path, name: str) -> Path:
    """Where a study that is no shipped one keeps its file beside its results."""
    return folder / f"{name}.yaml"


def refuse_another(folder: Path, name: str, study: Study, file: Path | None) -> None:
    """Raises UserError where the folder holds results of another study: another title, or of a file and of none.

    file: the study's own; None of a shipped one.
    """
    copy = copy_of(folder, name)
    if copy.is_file():
        title = read_yaml(copy).get("title")
        whose = None if file is not None and title == study.title else f"{title!r}, of a file {name}.yaml"
    else:
        whose = f"{name!r}, which ships with the package" if file is not None and (folder / RUNS).is_dir() else None
    if whose is not None:
        raise UserError(
            f"{folder} holds results of another study, {whose}: choose another --out, or give your file another name"
        )


def keep_file(folder: Path, name: str, file: Path) -> None:
    """A copy of the study's file beside its results, so that readers can repeat it."""
    copy = copy_of(folder, name)
    if not (copy.is_file() and copy.samefile(file)):
        write_text(copy, file.read_text(encoding="utf-8"))

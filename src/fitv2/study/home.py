"""Whose folder of results is whose: studies are named by their files, and two files may have one name."""

from __future__ import annotations

from pathlib import Path

from ..atomic import write_text
from ..config import parse_yaml
from ..errors import UserError
from .definition import Study


def copy_of(folder: Path, name: str) -> Path:
    """Where a study that is no shipped one keeps its file beside its results."""
    return folder / f"{name}.yaml"


def refuse_another(folder: Path, name: str, study: Study, file: Path | None) -> None:
    """Raises ValueError where the folder holds results of another study: another title, or of a file and of none.

    file: the study's own; None of a shipped one.
    """
    copy = copy_of(folder, name)
    if copy.is_file():
        title = parse_yaml(copy.read_text(encoding="utf-8"), str(copy)).get("title")
        whose = None if file is not None and title == study.title else f"{title!r}, of a file {name}.yaml"
    else:
        whose = f"{name!r}, which ships with the package" if file is not None and (folder / "runs").is_dir() else None
    if whose is not None:
        raise UserError(
            f"{folder} holds results of another study, {whose}: choose another --out, or give your file another name"
        )


def keep_file(folder: Path, name: str, file: Path) -> None:
    """A copy of the study's file beside its results, so that readers can repeat it."""
    copy = copy_of(folder, name)
    if not (copy.is_file() and copy.samefile(file)):
        write_text(copy, file.read_text(encoding="utf-8"))

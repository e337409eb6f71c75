"""What lies below a folder of pictures: each file once, in a fixed order, and the classes that its sub-folders are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from .formats import EXTENSIONS


class Listed(NamedTuple):
    """A file below the root.

    name: relative to the root, with forward slashes. kind: "picture" by its extension, "hidden", "unopened" for a
    folder that cannot be listed, else its extension, or "without extension". error: why a folder cannot be listed.
    """

    name: str
    kind: str
    error: str | None = None


def list_files(root: Path) -> Iterator[Listed]:
    """Every file below, and hidden folders unopened. Links to folders are followed, but not in a circle."""
    yield from _files(root, root, frozenset())


def _files(root: Path, folder: Path, above: frozenset[Path]) -> Iterator[Listed]:
    resolved = folder.resolve()
    if resolved in above:
        return
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        yield Listed(folder.relative_to(root).as_posix(), "unopened", error.strerror)
        return
    for path in entries:
        if path.is_dir() and not path.name.startswith("."):
            yield from _files(root, path, above | {resolved})
        else:
            yield Listed(path.relative_to(root).as_posix(), _kind(path))


def _kind(path: Path) -> str:
    if path.name.startswith("."):
        return "hidden"
    return "picture" if path.suffix.lower() in EXTENSIONS else path.suffix.lower() or "without extension"


def class_of(name: str) -> str | None:
    """The sub-folder of the root that a picture lies in; None directly below the root."""
    return name.partition("/")[0] if "/" in name else None


def classes_of(names: Iterable[str]) -> list[str]:
    """The sub-folders that hold pictures, in order: the classes. None where all lie directly below the root."""
    return sorted({folder for folder in map(class_of, names) if folder is not None})

"""Files that are complete or absent at any moment: written under another name, flushed to disk, then renamed."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

DRAFT = re.compile(r"\..+\.[0-9a-f]{32}")


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with the path of a draft, which then becomes `path`; makes the folder if need be."""
    write_files({path: write})


def write_files(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """As `write_file`, for files of one folder that belong together: all are whole before the first is replaced."""
    drafts = {path: path.with_name(f".{path.name}.{uuid.uuid4().hex}") for path in writers}
    try:
        for path, draft in drafts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            writers[path](draft)
            flush(draft)
        for path, draft in drafts.items():
            draft.replace(path)
        flush(path.parent)
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, complete or not at all."""
    write_file(path, lambda draft: draft.write_text(text, encoding="utf-8"))


# A folder in two halves, for several processes that write between them.


def begin_folder(target: Path) -> Path:
    """Makes an empty folder beside `target`, to be filled before `finish_folder` renames it to `target`."""
    partial = partial_folder(target)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def partial_folder(target: Path) -> Path:
    """Returns the path of the folder that `begin_folder` makes for `target`."""
    return target.with_name(f".{target.name}.partial")


def finish_folder(target: Path) -> None:
    """Renames the filled folder of `begin_folder` to `target`, which it replaces."""
    partial = partial_folder(target)
    flush(partial)
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)
    flush(target.parent)


def flush(path: Path) -> None:
    """Writes a file or folder to the disk, so that it survives a power cut. Windows cannot do this for folders."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_drafts(folder: Path) -> None:
    """Removes what `write_file` left in a folder when it was killed; nothing may be writing there now."""
    for path in folder.glob(".*"):
        if DRAFT.fullmatch(path.name):
            path.unlink()

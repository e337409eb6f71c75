"""Lists a folder of images: each file once, in a fixed order; what fitv2 itself made of images is never data."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..sample_list import DRAFT, SAMPLES_LIST, SHEET
from .formats import ADVICE, EXTENSIONS

# What systems and programs leave beside images, sometimes images themselves: previews, deleted files, copies.
SYSTEM = {
    *("@eaDir", "#recycle", "@Recycle", ".@__thumb", "$RECYCLE.BIN", "System Volume Information", "lost+found"),
    *("__MACOSX", ".thumbnails", ".Trashes", ".Spotlight-V100", ".fseventsd", ".AppleDouble"),
    *(".ipynb_checkpoints", "__pycache__", "Thumbs.db", "desktop.ini", ".DS_Store"),
}
RUN, PREPARED, SAMPLES = "a training run", "prepared data", "samples"
# What a folder is, by the names in it: every name of a set must be there.
MARKS: list[tuple[str, set[str]]] = [
    (RUN, {"recipe.json", "checkpoints"}),
    (RUN, {"recipe.json", "samples"}),
    (RUN, {"recipe.json", "log.jsonl"}),
    (RUN, {"recipe.json", "model"}),
    (PREPARED, {"settings.json", "shards"}),
    ("an inspection", {"images.csv", "plots.png"}),
    ("an evaluation", {"result.json", "scores.png"}),
    ("an evaluation", {"evaluation.json"}),
    ("a study", {"result.json", "final.png"}),
    ("a study", {"runs", "sheets"}),
    ("a study", {"forest.png", "README.md"}),
]
SAMPLE = re.compile(r".+_\d+x\d+_seed\d+\.png")


class Listed(NamedTuple):
    """A file below the root, or a folder that is not searched.

    name: Relative to the root, with forward slashes.
    kind: "image" by its extension, "unopened", "ours" (made by fitv2), "hidden", a name of SYSTEM, or else its
        extension or "without extension".
    reason: Why it is not used; None for images.
    """

    name: str
    kind: str
    reason: str | None = None


def list_files(root: Path) -> Iterator[Listed]:
    """Yields every file below the root. Links to folders are followed, but not in circles.

    Folders that are hidden, belong to a system or were made by fitv2 are listed but not searched, except for the root.
    Samples among other images are left out one by one.
    """
    yield from _files(root, root, frozenset())


def _files(root: Path, folder: Path, above: frozenset[Path]) -> Iterator[Listed]:
    resolved = folder.resolve()
    if resolved in above:
        return
    own = folder.relative_to(root).as_posix()
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        yield Listed(own, "unopened", f"folder cannot be opened: {error.strerror}")
        return
    made = made_by_fitv2({path.name for path in entries})

    def below(path: Path) -> Iterator[Listed]:
        if path.is_dir() and _name_kind(path.name) is None:
            yield from _files(root, path, above | {resolved})
        else:
            yield listed(path.relative_to(root).as_posix())

    samples = {path for path in entries if is_sample(path.name)} if made == SAMPLES else set()
    mixed = samples and any(file.reason is None for path in entries if path not in samples for file in below(path))
    if made and folder != root and not mixed:
        yield Listed(own, "ours", f"made by fitv2: {made}")
        return
    for path in entries:
        if path in samples and (mixed or path.name == SHEET):
            what = "a contact sheet" if path.name == SHEET else "a sample"
            yield Listed(path.relative_to(root).as_posix(), "ours", f"made by fitv2: {what}")
        else:
            yield from below(path)


def listed(name: str) -> Listed:
    """Classifies a file by its name alone, as in an archive; the folders in the name count too."""
    for part in name.split("/"):
        kind = _name_kind(part)
        if kind is not None:
            return Listed(name, kind, "hidden" if kind == "hidden" else f"of the system: {kind}")
    suffix = Path(name).suffix.lower()
    if suffix in EXTENSIONS:
        return Listed(name, "image")
    kind = suffix or "without extension"
    return Listed(name, kind, f"ignored extension: {kind}" + (f", {ADVICE[suffix]}" if suffix in ADVICE else ""))


def _name_kind(name: str) -> str | None:
    if name in SYSTEM:
        return name
    return "hidden" if name.startswith(".") and name not in (".", "..") else None


def class_of(name: str) -> str | None:
    """Returns the sub-folder of the root that an image lies in; None directly below the root."""
    return name.partition("/")[0] if "/" in name else None


def classes_of(names: Iterable[str]) -> list[str]:
    """Returns the classes: the sub-folders that hold images. Empty if all images are directly below the root.

    The order is alphabetical, also for numbers (1, 10, 2): existing runs and prepared data depend on it.
    """
    return sorted({folder for folder in map(class_of, names) if folder is not None})


def is_sample(name: str) -> bool:
    """Whether a file of a folder of samples is one of them, or their sheet."""
    return name == SHEET or SAMPLE.fullmatch(name) is not None


def made_by_fitv2(names: Collection[str]) -> str | None:
    """Returns what a folder with these names in it is, if fitv2 made it; None for all other folders."""
    for what, marks in MARKS:
        if marks.issubset(names):
            return what
    listed = not {SHEET, SAMPLES_LIST, DRAFT}.isdisjoint(names)
    return SAMPLES if listed and any(map(SAMPLE.fullmatch, names)) else None

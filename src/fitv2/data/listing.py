"""Lists a folder of images: each file once, in a fixed order; what fitv2 itself made of images is never data."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from ..sample_list import DRAFT, SAMPLES_LIST, SHEET
from ..system.locks import LOCK
from .formats import ADVICE, EXTENSIONS

# What systems and programs leave beside images, sometimes images themselves: previews, deleted files, copies.
SYSTEM = {
    *("@eaDir", "#recycle", "@Recycle", ".@__thumb", "$RECYCLE.BIN", "System Volume Information", "lost+found"),
    *("__MACOSX", ".thumbnails", ".Trashes", ".Spotlight-V100", ".fseventsd", ".AppleDouble"),
    *(".ipynb_checkpoints", "__pycache__", "Thumbs.db", "desktop.ini", ".DS_Store"),
}
SAMPLES = "samples"
# What a folder is, by the names in it: every name of a set must be there.
MARKS = [
    *(("a training run", {"recipe.json", name}) for name in ("checkpoints", "samples", "log.jsonl", "model")),
    ("prepared data", {"settings.json", "shards"}),
    ("drawings for 'fitv2 train --recipe emoji --set data.folder=...'", {"ATTRIBUTION.md", "packages"}),
    ("an inspection", {"images.csv", "plots.png"}),
    ("an evaluation", {"result.json", "scores.png"}),
    ("an evaluation", {"evaluation.json", LOCK}),
    ("a study", {"result.json", "final.png"}),
]
# The page of a study, and its first line: others have such a file as well.
STUDY_PAGE, STUDY_MARK = "README.md", "<!-- Written by fitv2 study, which overwrites this file. -->"
# Why a file is ignored by its name alone.
HIDDEN, OF_SYSTEM, EXTENSION = "hidden", "of the system", "ignored extension"
SAMPLE = re.compile(r".+_\d+x\d+_seed\d+\.png")


@dataclass(frozen=True, slots=True)
class Item:
    """A file of a source, or a folder that is not searched.

    Attributes:
        id: Its name relative to the source, with forward slashes.
        label: Its class; 0 without classes.
        refused: Why it is not used; None for images.
        kind: "image" by its extension, "unopened", "ours" (made by fitv2), "hidden", a name of SYSTEM, or else its
            extension or "without extension".
        captions: Any number; of what `fitv2 prepare` has read alone.
    """

    id: str
    label: int = 0
    refused: str | None = None
    kind: str = "image"
    captions: tuple[str, ...] = ()


def list_files(root: Path) -> list[Item]:
    """Returns every file below the root, without labels. Links to folders are followed, but not in circles.

    Folders that are hidden, belong to a system or were made by fitv2 are listed but not searched, except for the root.
    Samples among other images are left out one by one.
    """
    return _files(root, root, frozenset())


def _files(root: Path, folder: Path, above: frozenset[Path]) -> list[Item]:
    own, resolved = folder.relative_to(root).as_posix(), folder.resolve()
    if resolved in above:
        return []
    try:
        with os.scandir(folder) as opened:  # Paths would take most of the start with a million files.
            entries = {entry.name: entry for entry in sorted(opened, key=lambda entry: os.path.normcase(entry.name))}
    except OSError as error:
        return [Item(own, refused=f"folder cannot be opened: {error.strerror}", kind="unopened")]
    made = made_by_fitv2(folder, entries.keys())
    ours = [Item(own, refused=f"made by fitv2: {made}", kind="ours")]
    if made not in (None, SAMPLES) and folder != root:
        return ours
    found: dict[str, list[Item]] = {}
    prefix = "" if folder == root else f"{own}/"
    for name, entry in entries.items():
        if _is_folder(entry) and _name_kind(name) is None:
            found[name] = _files(root, folder / name, above | {resolved})
        else:
            found[name] = [listed(prefix + name)]
    if made == SAMPLES:
        samples = {name for name in entries if name == SHEET or SAMPLE.fullmatch(name)}
        mixed = any(item.refused is None for name in entries if name not in samples for item in found[name])
        if folder != root and not mixed:
            return ours
        for name in samples:
            what = "a contact sheet" if name == SHEET else "a sample"
            if mixed or name == SHEET:
                found[name] = [Item(prefix + name, refused=f"made by fitv2: {what}", kind="ours")]
    return list(chain.from_iterable(found.values()))


def _is_of_study(page: Path) -> bool:
    if not page.is_file():  # A pipe would wait for ever.
        return False
    try:
        with page.open("rb") as file:
            return file.read(len(STUDY_MARK)) == STUDY_MARK.encode()
    except OSError:
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # A link may lead in a circle, at which `entry.is_dir` would raise an error.
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()


def listed(name: str) -> Item:
    """Classifies a file by its name alone, as in an archive; the folders in the name count too."""
    for part in name.split("/"):
        if (kind := _name_kind(part)) is not None:
            return Item(name, refused=HIDDEN if kind == HIDDEN else f"{OF_SYSTEM}: {kind}", kind=kind)
    stem, _, extension = part.rpartition(".")
    suffix = f".{extension.lower()}" if stem and extension else ""
    if suffix in EXTENSIONS:
        return Item(name)
    kind = suffix or "without extension"
    told = f", {ADVICE[suffix]}" if suffix in ADVICE else ""
    return Item(name, refused=f"{EXTENSION}: {kind}{told}", kind=kind)


def kind_of(refused: str) -> str | None:
    """Returns the kind of a file that `listed` refused with these words; None if other words refused it."""
    what, _, kind = refused.partition(": ")
    if what in (HIDDEN, OF_SYSTEM, EXTENSION):
        return kind.partition(", ")[0] or what
    return None


def _name_kind(name: str) -> str | None:
    if name in SYSTEM:
        return name
    return HIDDEN if name.startswith(".") and name not in (".", "..") else None


def made_by_fitv2(folder: Path, names: Collection[str]) -> str | None:
    """Returns what a folder with these names in it is, if fitv2 made it; None for all other folders."""
    for what, marks in MARKS:
        if marks.issubset(names):
            return what
    if STUDY_PAGE in names and _is_of_study(folder / STUDY_PAGE):
        return "a study"
    is_listed = not {SHEET, SAMPLES_LIST, DRAFT}.isdisjoint(names)
    return SAMPLES if is_listed and any(map(SAMPLE.fullmatch, names)) else None

"""Where pictures come from: items in a fixed order, with labels, read as bytes. Here folders and lists.

Every file that a source meets becomes an item, those that are no pictures too, with the reason: nothing goes unnamed.
"""

from __future__ import annotations

import csv
import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..data.formats import ignored
from ..data.images import UnreadableImage
from ..data.listing import Listed, class_of, classes_of, list_files
from ..errors import UserError

LISTS = {".txt": "\t", ".tsv": "\t", ".csv": ","}
# Such files are no photographs, and reading one would take the memory of the machine.
MOST_BYTES = 1 << 30
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
HEADERS = ("path", "file", "filename", "image")
# Beyond this a whole number is no class number: a table of the classes would fill the memory.
MOST_CLASSES = 100_000


@dataclass(frozen=True, slots=True)
class Item:
    """A file of a source. id: its name there. label: its class, 0 without classes. refused: why it is not taken."""

    id: str
    label: int = 0
    refused: str | None = None


class Source(Protocol):
    """items: in an order that the source alone fixes. class_names: in the order of the labels; empty without any."""

    items: Sequence[Item]
    class_names: list[str]

    def read(self, index: int) -> bytes:
        """The file of an item that is not refused. Raises OSError where it cannot be read, UnreadableImage where it
        is far too large.
        """


def read_file(path: Path) -> bytes:
    check_length(path.stat().st_size)
    return path.read_bytes()


def check_length(length: int) -> None:
    if length > MOST_BYTES:
        raise UnreadableImage(f"too large: {length} bytes, limit {MOST_BYTES}")


class FolderSource:
    """The picture files below a folder; its sub-folders are the classes, as in `data.folder`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        listed = list(list_files(root))
        self.class_names = classes_of(file.name for file in listed if file.kind == "picture")
        self.labels = {name: number for number, name in enumerate(self.class_names)}
        self.items = [Item(file.name, self.labels.get(class_of(file.name), 0), self._reason(file)) for file in listed]

    def read(self, index: int) -> bytes:
        return read_file(self.root / self.items[index].id)

    def _reason(self, file: Listed) -> str | None:
        if file.kind == "unopened":
            return f"folder cannot be opened: {file.error}"
        if file.kind == "hidden":
            return "hidden"
        if file.kind != "picture":
            return ignored(file.kind)
        if self.class_names and class_of(file.name) is None:
            return "outside the class folders"
        # A broken link, or a pipe, on which reading would wait for ever.
        return None if (self.root / file.name).is_file() else "not a file"


class ListSource:
    """The lines of a text file: a path, relative to it, and after a tab (.csv: a comma) its label, or no label."""

    def __init__(self, file: Path) -> None:
        self.folder = file.parent
        try:
            with file.open(encoding="utf-8-sig", newline="") as lines:
                rows = [row for row in csv.reader(lines, delimiter=LISTS[file.suffix.lower()]) if any(row)]
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{file} is not a list of pictures: {error}") from None
        if rows and rows[0][0].strip().lower() in HEADERS:
            del rows[0]
        paths = [row[0].strip() for row in rows]
        self.items, self.class_names = labelled(paths, [row[1].strip() if len(row) > 1 else None for row in rows])
        self.items = [item if item.refused else self._checked(item) for item in self.items]

    def read(self, index: int) -> bytes:
        return read_file(self.folder / self.items[index].id)

    def _checked(self, item: Item) -> Item:
        return item if (self.folder / item.id).is_file() else Item(item.id, item.label, "not a file")


def labelled(names: Sequence[str], labels: Sequence[str | None]) -> tuple[list[Item], list[str]]:
    """Items and class names from labels as texts. Whole numbers are class numbers; other labels are names, in order.

    Where some have a label, those without are refused.
    """
    given = {label for label in labels if label}
    if all(label.isdecimal() and int(label) < MOST_CLASSES for label in given):
        class_names = [str(number) for number in range(max(map(int, given), default=-1) + 1)]
        numbers = {label: int(label) for label in given}
    else:
        class_names = sorted(given)
        numbers = {label: number for number, label in enumerate(class_names)}
    items = [
        Item(name, refused="without a label") if given and not label else Item(name, numbers.get(label, 0))
        for name, label in zip(names, labels, strict=True)
    ]
    return items, class_names


def open_source(name: str) -> Source:
    """The source that a name means: a folder of pictures, a list, archives (a file, a folder or a pattern), or else a
    data set of Hugging Face by folder or hub id. Raises ValueError where there is none.
    """
    from .archives import ArchiveSource
    from .hub import HubSource, is_hub_folder

    path = Path(name)
    found = path.glob("*.tar") if path.is_dir() else map(Path, glob.glob(name))
    archives = sorted(archive for archive in found if archive.suffix == ".tar" and archive.is_file())
    if archives and path.is_dir() and any(file.kind == "picture" for file in list_files(path)):
        raise UserError(
            f"{name} holds archives and pictures: name the archives by '{name}/*.tar', or give each a folder"
        )
    if archives:
        return ArchiveSource(archives)
    if path.is_dir():
        return HubSource(name) if is_hub_folder(path) else FolderSource(path)
    if path.is_file():
        if path.suffix.lower() in LISTS:
            return ListSource(path)
        raise UserError(f"{name} is neither a folder, a list ({', '.join(LISTS)}) nor a .tar archive")
    if path.suffix in (*LISTS, ".tar") or not HUB_ID.fullmatch(name):
        raise UserError(f"there is no {name}: give a folder of pictures, a list of paths, or .tar archives")
    return HubSource(name)

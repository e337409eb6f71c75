"""Opens a source of images by its name. Folders and lists are read here, archives and Hugging Face in their modules."""

from __future__ import annotations

import glob
import re
from dataclasses import replace
from pathlib import Path

from ..data.captions import FolderCaptions
from ..data.contents import OF_LABELS, Labels, read_contents
from ..data.labelling import Item, labelled
from ..data.listing import list_files
from ..data.tables import LISTS, is_there, read_table
from ..errors import UserError
from ..messages import counted
from .archives import ArchiveSource
from .hub import HubSource, is_hub_folder
from .items import Source, read_file

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
PACKED = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
OPTION = "--labels "
NOT_THERE = "not a file"


class FolderSource(Source):
    """The image files below a folder, labelled as `data.contents` reads them, with captions as of `data.captions`.

    Text files that hold captions are no items, so that captions which come later move no image to another shard.
    """

    def __init__(self, root: Path, labels: Labels = "auto") -> None:
        self.root = root
        contents = read_contents(root, labels, OPTION)
        self.class_names, self.notes = contents.class_names, contents.notes
        images = [item.id for item in contents.items if item.refused is None]
        self.texts = FolderCaptions(root, (item.id for item in contents.items), images)
        texts = set(self.texts.text_of.values())
        self.items = [self._checked(item) for item in contents.items if item.id not in texts]

    def _checked(self, item: Item) -> Item:
        if item.id in self.texts.tables and item.refused != OF_LABELS:
            return replace(item, refused="read for its captions")
        # Not a file: a broken link, or a pipe, on which reading would wait for ever.
        return item if item.refused or (self.root / item.id).is_file() else replace(item, refused=NOT_THERE)

    def read(self, index: int) -> bytes:
        return read_file(self.root / self.items[index].id)

    def captions(self, index: int) -> tuple[str, ...]:
        return self.texts[self.items[index].id]


class ListSource(Source):
    """The rows of a table as `data.tables` reads it; paths are relative to it, or absolute."""

    def __init__(self, file: Path, labels: Labels = "auto") -> None:
        self.folder = file.parent
        table = read_table(file, labels != "none")
        there = [row for row in table.rows if is_there(self.folder, row.path)]
        lost = [row for row in table.rows if not is_there(self.folder, row.path)]
        if 2 * len(lost) > len(table.rows):
            raise UserError(
                f"{len(lost)} of {counted(len(table.rows), 'image')} in {file} cannot be found, the first "
                f"{lost[0].path!r} (line {lost[0].line}): each line is a path, relative to {self.folder}, and after a "
                f"{'comma' if file.suffix.lower() == '.csv' else 'tab'} its label"
            )
        items, self.class_names = labelled([row.path for row in there], [row.label for row in there], str(file))
        lines = {item.id: [item] for item in items} | {row.path: [Item(row.path, 0, NOT_THERE)] for row in lost}
        self.items = [item for row in table.rows for item in lines[row.path]]
        self.items += [Item(row.path, refused="listed before") for row in table.repeated]
        self.notes = [table.note] if table.note and labels != "none" else []
        self.captions_of = {row.path: row.captions for row in there if row.captions}

    def read(self, index: int) -> bytes:
        return read_file(self.folder / self.items[index].id)

    def captions(self, index: int) -> tuple[str, ...]:
        return self.captions_of.get(self.items[index].id, ())


def open_source(name: str, labels: Labels = "auto") -> Source:
    """Opens a folder of images, a list, archives (a file, a folder or a pattern), or else a data set of Hugging Face.

    Raises UserError if there is no such source.
    """
    path = Path(name)
    files = list_files(path) if path.is_dir() else []
    images = any(file.refused is None for file in files)
    is_hub = path.is_dir() and is_hub_folder(path, images)
    if path.is_dir():
        found = [path / file.id for file in files if file.kind != "hidden"]
    else:  # A file that is there is no pattern, whatever its name.
        found = [path] if path.is_file() else sorted(map(Path, glob.glob(name)))
    archives = [file for file in found if file.suffix.lower() == ".tar" and file.is_file()]
    if path.is_dir():
        archives = [file for file in archives if file.parent == path]
    packed = [file for file in found if file.suffix.lower() in PACKED and file.is_file()]
    if packed and not (images or is_hub or path.is_file()):
        raise UserError(f"{name} holds packed files such as {packed[0]}, which are not read: unpack them first")
    if path.is_dir() and not is_hub:
        if archives and images:
            raise UserError(
                f"{name} holds archives and images: name the archives by '{name}/*.tar', or give each a folder"
            )
        if not archives:
            return FolderSource(path, labels)
    if labels == "folders":
        raise UserError(f"--labels folders goes with a folder of images, and {name} is none; its labels are its own")
    if archives:
        return ArchiveSource(archives, labels)
    if path.is_file() and path.suffix.lower() in LISTS:
        return ListSource(path, labels)
    if path.is_file():
        packed = ": unpack it first" if path.suffix.lower() in PACKED else ""
        raise UserError(f"{name} is neither a folder, a list ({', '.join(LISTS)}) nor a .tar archive{packed}")
    if not path.is_dir() and (path.suffix in (*LISTS, ".tar") or not HUB_ID.fullmatch(name)):
        raise UserError(f"there is no {name}: give a folder of images, a list of paths, or .tar archives")
    return HubSource(name, labels)

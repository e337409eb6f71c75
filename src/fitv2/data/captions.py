"""The captions of a folder of images: a column of metadata.jsonl or metadata.csv, or a text file beside each image.

A table may lie in any folder; its paths are relative to that one. Of several tables that tell of an image, the deepest
counts. Its column is called text, caption, captions, prompt or description; of a list, each entry is a caption. In a
text file of the same name (cat.jpg, cat.txt), each line is one. Of several captions, each epoch draws one.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from posixpath import dirname, join, normpath, splitext

from ..errors import UserError
from ..messages import counted
from .dataset import evenly
from .tables import CAPTIONS, LINE_END, read_table

TABLES = ("metadata.jsonl", "metadata.csv")
TEXTS = (".txt", ".caption")
# Images, evenly spread over a folder, that tell whether there are text files beside them.
PROBES = 100


class FolderCaptions:
    """The captions of the images of a folder; those of text files are read when they are asked for.

    Args:
        root: The folder.
        files: The names of all its files, relative to the root.
        images: The names of those that are data.

    Attributes:
        text_of: The text file of each image that has one, and no caption in a table.
        tables: The names of the tables that hold captions.
        count: The number of images with a caption.

    Raises UserError if a table cannot be read, or if all its captions are of files that are not there.
    """

    def __init__(self, root: Path, files: Iterable[str], images: Sequence[str]) -> None:
        self.root = root
        files = set(files)
        self.of_table: dict[str, tuple[str, ...]] = {}
        self.tables: set[str] = set()
        # Later ones take precedence: the deeper one, which is about fewer images, and of one folder metadata.csv.
        found = sorted((name for name in files if name.rpartition("/")[2] in TABLES), reverse=True)
        for table in sorted(found, key=lambda name: name.count("/")):
            rows = read_table(root / table, with_labels=False).rows
            told = {normpath(join(dirname(table), row.path)): row.captions for row in rows if row.captions}
            if told and files.isdisjoint(told):
                raise UserError(
                    f"{root / table} has captions, but of no file below {root}, the first for {next(iter(told))}: "
                    "correct its paths, which are relative to its own folder, or remove it"
                )
            self.of_table |= told
            self.tables |= {table} if told else set()
        texts = {splitext(name)[0]: name for name in sorted(files) if splitext(name)[1].lower() in TEXTS}
        without = (name for name in images if name not in self.of_table)
        self.text_of = {name: texts[splitext(name)[0]] for name in without if splitext(name)[0] in texts}
        self.count = sum(name in self.of_table or name in self.text_of for name in images)

    def __getitem__(self, image: str) -> tuple[str, ...]:
        """Returns the captions of an image, none if it has none. Raises UserError if they cannot be read any more."""
        if image in self.of_table:
            return self.of_table[image]
        if image not in self.text_of:
            return ()
        path = self.root / self.text_of[image]
        return caption_lines(partial(_read, path), path)


def has_captions(root: Path, images: Sequence[str]) -> bool:
    """Whether a folder seems to have captions, a column of a table or a text file beside most images; reads none.

    Of many images it looks for the text files of a few. Arguments as of `FolderCaptions`.
    """
    endings = *TEXTS, *map(str.upper, TEXTS)
    few = [images[int(i)] for i in evenly(len(images), PROBES)]
    folders = {"", *map(dirname, few)}
    if any(first_columns(root / folder / name).intersection(CAPTIONS) for folder in folders for name in TABLES):
        return True
    beside = [any((root / f"{splitext(name)[0]}{ending}").is_file() for ending in endings) for name in few]
    return 2 * sum(beside) > len(few)


def first_columns(table: Path) -> set[str]:
    """Returns the names of columns in the first line of a table; none if it cannot be read."""
    if not table.is_file():
        return set()
    try:
        with table.open(encoding="utf-8-sig") as file:
            line = file.readline()
        return set(json.loads(line) if table.suffix == ".jsonl" else next(csv.reader([line]), ()))
    except (OSError, ValueError, TypeError, RecursionError, csv.Error):
        return set()


def caption_lines(read: Callable[[], bytes], where: object) -> tuple[str, ...]:
    """Returns the captions in a text file, one per line. Raises UserError if it cannot be read.

    Args:
        read: Returns its bytes, or raises OSError.
        where: Its name, for the message.
    """
    try:
        lines = LINE_END.split(read().decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"the caption {where} cannot be read ({why}): correct or remove the file") from None
    return tuple(filter(None, map(str.strip, lines)))


def _read(path: Path) -> bytes:
    if not path.is_file():  # On a pipe, reading would wait for ever.
        raise OSError("not a file")
    return path.read_bytes()


def captioned_note(captioned: int, images: int) -> str:
    """Says how many of the images have a caption."""
    return f"{captioned:,} of {counted(images, 'image')} have a caption"

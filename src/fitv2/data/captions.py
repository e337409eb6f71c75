"""The captions of a folder of images: a column of metadata.jsonl or metadata.csv, or a text file beside each image.

A table's column is called text, caption, captions, prompt or description; of a list, each entry is a caption. In a text
file of the same name (cat.jpg, cat.txt), each line is one. Of several captions, each epoch draws one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from posixpath import normpath, splitext

from ..errors import UserError
from ..messages import counted
from .tables import read_table

TABLES = ("metadata.jsonl", "metadata.csv")
TEXTS = (".txt", ".caption")


class FolderCaptions:
    """The captions of the images of a folder; those of text files are read when they are asked for.

    Args:
        root: The folder.
        files: The names of all its files, relative to the root.
        images: The names of those that are data.

    Raises UserError if no image has a caption.
    """

    def __init__(self, root: Path, files: Iterable[str], images: Sequence[str]) -> None:
        self.root = root
        files = set(files)
        tables = [read_table(root / name, with_labels=False) for name in TABLES if name in files]
        self.of_table = {normpath(row.path): row.captions for table in tables for row in table.rows if row.captions}
        texts = {splitext(name)[0]: name for name in sorted(files) if splitext(name)[1].lower() in TEXTS}
        self.text_of = {name: texts[splitext(name)[0]] for name in images if splitext(name)[0] in texts}
        self.count = sum(name in self.of_table or name in self.text_of for name in images)
        if not self.count:
            raise UserError(
                f"the model is conditioned on text, and no image in {root} has a caption: write a metadata.jsonl there "
                'with a line {"file_name": "cat.jpg", "text": "a black cat"} per image, or a cat.txt beside each image'
            )

    def __getitem__(self, image: str) -> tuple[str, ...]:
        """Returns the captions of an image, none if it has none. Raises UserError if they cannot be read any more."""
        if image in self.of_table:
            return self.of_table[image]
        if image not in self.text_of:
            return ()
        path = self.root / self.text_of[image]
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"the caption {path} cannot be read ({error}): correct or remove the file") from None
        return tuple(filter(None, map(str.strip, lines)))

    def note(self, images: int) -> str:
        """Says how many of the images have a caption."""
        return f"{self.count:,} of {counted(images, 'image')} have a caption"

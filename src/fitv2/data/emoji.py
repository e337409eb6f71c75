"""Drawings of things by several artists, each with a name and a group: a bundled few, or all that `fitv2 emoji` makes.

An archive is a zip file of WebP images with alpha and of `index.json`: {"sets": [what is known of each set],
"drawings": [a `Drawing` each]}. One name in ten is never trained on, so that prompts for it test what a model makes of
words that it has not seen.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from ..errors import UserError, damaged
from .cutouts import Cutouts, every

INDEX = "index.json"
# One name in this many is held back.
HELD_BACK = 10
# The drawings as a source of images: the bundled ones, or after a colon the folder of others.
EMOJI = "emoji"
# What a damaged archive raises; RuntimeError where the damage looks like a password or an unknown compression.
_OF_CONTENT = ValueError, KeyError, TypeError, AttributeError
DAMAGES = OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile, *_OF_CONTENT


@dataclass(frozen=True)
class Thing:
    """What a drawing shows.

    Attributes:
        name: The same in all sets: red-apple.
        label: In words: red apple.
        tags: Other words for it.
        group, subgroup: Such as food-drink and food-fruit.
    """

    name: str
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str


@dataclass(frozen=True)
class Drawing(Thing):
    """A drawing of an archive.

    Attributes:
        id: SET/FILE, such as noto/red-apple.
        size: Height and width in pixels.
        set: The set of drawings, an artist's.
        style: How the drawings of this set look.
        content: The WebP file.
    """

    id: str
    size: tuple[int, int]
    set: str
    style: str
    content: bytes

    @property
    def held_back(self) -> bool:
        """Whether no drawing of this name is ever trained on: about one name in ten."""
        return every(self.name, HELD_BACK)


def is_emoji(name: str) -> bool:
    """Whether it is a name of the drawings: emoji, or emoji:FOLDER."""
    return name.partition(":")[0] == EMOJI


def read_named(name: str) -> list[Drawing]:
    """Returns the drawings of such a name, as `read_drawings`."""
    return read_drawings(Path(name.partition(":")[2]) if ":" in name else None)


def read_drawings(folder: Path | None = None) -> list[Drawing]:
    """Returns the drawings in all archives of a folder, or the bundled ones, in the order of their ids.

    Raises UserError if there are none, or an archive is damaged.
    """
    if folder is None:
        archives: Sequence[Traversable | Path] = [files("fitv2.data").joinpath("emoji.zip")]
    else:
        archives = sorted(folder.glob("*.zip"))
    if not archives:
        raise UserError(f"there are no drawings in {folder}: make them with 'fitv2 emoji --out {folder}'")
    return sorted((drawing for archive in archives for drawing in read_archive(archive)), key=lambda d: d.id)


def read_archive(archive: Traversable | Path) -> list[Drawing]:
    """Returns the drawings in an archive. Raises UserError if it is damaged, or is none of drawings."""
    try:
        with archive.open("rb") as file, zipfile.ZipFile(file) as opened:
            index = json.loads(opened.read(INDEX))
            style = {about["set"]: about["style"] for about in index["sets"]}
            drawings = []
            for line in index["drawings"]:
                line |= {"tags": tuple(line["tags"]), "size": tuple(line["size"]), "style": style[line["set"]]}
                drawings.append(Drawing(**line, content=opened.read(file_of(line["id"]))))
            return drawings
    except DAMAGES as error:
        raise damaged(archive, error, "delete it and make it again with 'fitv2 emoji'") from None


def file_of(drawing: str) -> str:
    """Returns the name in an archive of the drawing with this id."""
    return f"{drawing}.webp"


def cutouts(
    drawings: Sequence[Drawing], classes: Literal["group", "name", "none"] = "group", everything: bool = False
) -> Cutouts:
    """Returns the drawings that may be trained on, as cut-outs; the names that are held back are left out.

    classes: what the labels are; "none": all are 0, of no class. everything: also what is held back, for judges.
    """
    kept = [drawing for drawing in drawings if everything or not drawing.held_back]
    labels = [drawing.group if classes == "group" else drawing.label for drawing in kept]
    class_names, numbers = np.unique(labels, return_inverse=True)
    if classes == "none":
        class_names, numbers = class_names[:0], np.zeros_like(numbers)
    sets, set_of = np.unique([drawing.set for drawing in kept], return_inverse=True)
    styles = {drawing.set: drawing.style for drawing in kept}
    return Cutouts(
        ids=[drawing.id for drawing in kept],
        names=[drawing.label for drawing in kept],
        sizes=np.array([drawing.size for drawing in kept], np.int64),
        labels=numbers.astype(np.int64),
        class_names=class_names.tolist(),
        sets=set_of.astype(np.int64),
        styles=[styles[name] for name in sets.tolist()],
        read=lambda index: Image.open(io.BytesIO(kept[index].content)).convert("RGBA"),
    )

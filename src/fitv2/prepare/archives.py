"""WebDataset archives: pictures as KEY.jpg (or another such extension), their labels in KEY.cls or KEY.json."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..data.formats import EXTENSIONS, ignored
from .sources import Item, check_length, labelled

LABEL_EXTENSIONS = (".cls", ".json")
LABEL_KEYS = ("label", "cls")
MOST_LABEL_BYTES = 1 << 20


class Place(NamedTuple):
    """Where the bytes of a member lie."""

    archive: Path
    start: int
    length: int


class ArchiveSource:
    """The members of uncompressed tar archives, one archive after another in the order given, read where they lie."""

    def __init__(self, archives: Sequence[Path]) -> None:
        names: list[str] = []
        keys: list[tuple[Path, str]] = []
        reasons: list[str | None] = []
        self.places: list[Place | None] = []
        label_of: dict[tuple[Path, str], str] = {}
        for archive, member in ((path, member) for path in archives for member in members(path)):
            name, place, reason = member
            key, extension = split_key(name)
            if reason is None and extension in LABEL_EXTENSIONS:
                label = read_label(place, extension)
                if label is not None:
                    label_of.setdefault((archive, key), label)
                continue
            if reason is None and extension not in EXTENSIONS:
                reason = ignored(extension)
            names.append(name)
            keys.append((archive, key))
            reasons.append(reason)
            self.places.append(place)
        pictures = [i for i, reason in enumerate(reasons) if reason is None]
        items, self.class_names = labelled([names[i] for i in pictures], [label_of.get(keys[i]) for i in pictures])
        taken = iter(items)
        self.items = [
            next(taken) if reason is None else Item(name, refused=reason)
            for name, reason in zip(names, reasons, strict=True)
        ]

    def read(self, index: int) -> bytes:
        return read_place(self.places[index])


def members(archive: Path) -> Iterator[tuple[str, Place | None, str | None]]:
    """(ARCHIVE/member, its place, None) of every file in order, or (name, None, why it cannot be taken)."""
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                name = f"{archive.name}/{member.name}"
                if member.isreg():
                    yield name, Place(archive, member.offset_data, member.size), None
                elif not member.isdir():
                    yield name, None, "not a file"
    except (tarfile.TarError, EOFError) as error:
        yield archive.name, None, f"truncated or damaged: {error}"


def read_place(place: Place) -> bytes:
    check_length(place.length)
    with place.archive.open("rb") as file:
        file.seek(place.start)
        content = file.read(place.length)
    if len(content) < place.length:
        raise OSError(None, "the archive ends within it")
    return content


def split_key(name: str) -> tuple[str, str]:
    """WebDataset's key, up to the first dot of the file's own name, and the last extension in lower case."""
    folder, slash, own = name.rpartition("/")
    return folder + slash + own.partition(".")[0], Path(own).suffix.lower()


def read_label(place: Place, extension: str) -> str | None:
    """What a .cls or .json member says; None where it says nothing that can be a label."""
    try:
        if place.length > MOST_LABEL_BYTES:
            return None
        text = read_place(place).decode().strip()
        if extension == ".cls":
            return text or None
        content = json.loads(text)
        values = [content[key] for key in LABEL_KEYS if key in content] if isinstance(content, dict) else []
        return str(values[0]) if values and isinstance(values[0], int | str) else None
    except (OSError, ValueError):
        return None

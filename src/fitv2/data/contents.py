"""What a folder of images holds: which of its files are data, of which class, and why the others are not.

Labels come from a table beside the images (metadata.jsonl, metadata.csv, dataset.json) if there is one, else from the
sub-folders of the root. If this is not clear, an error asks; nothing is guessed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from posixpath import normpath
from typing import Literal

from ..errors import UserError
from ..messages import counted, shortened
from ..sample_list import is_contact_sheet
from .labelling import labelled
from .listing import SAMPLES, Item, list_files, made_by_fitv2
from .tables import Table, is_there, read_table

Labels = Literal["auto", "folders", "none"]
TABLES = ("metadata.jsonl", "metadata.csv", "dataset.json")
# Files beside images that may hold labels too: not read, but mentioned in a note.
UNREAD = (".csv", ".tsv", ".jsonl", ".parquet")
OF_LABELS = "read for its labels"
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}


@dataclass
class Contents:
    """items: Everything found, in order, with its label or the reason why it is left out. class_names: In the order of
    the labels; empty without classes. notes: Sentences about what was decided.
    """

    items: list[Item]
    class_names: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_contents(root: Path, labels: Labels = "auto", option: str | None = "--set data.labels=") -> Contents:
    """Lists the files below a folder, each with its label or the reason why it is left out.

    Args:
        root: The folder.
        labels: "folders": the sub-folders of the root are the classes; "none": there are no classes; "auto": a table
            beside the images, or else the sub-folders, if that is clear.
        option: How users choose `labels`, for messages; None if they cannot.

    Raises:
        UserError: The folder was made by fitv2 itself, or it is not clear what the classes are.
    """
    made = made_by_fitv2(root, {path.name for path in root.iterdir()})
    if made not in (None, SAMPLES):  # Samples may be given by name.
        raise UserError(
            f"{root} is {made}, made by fitv2, and not a folder of images: give the folder of the images themselves"
        )
    items = list_files(root)
    if labels == "none":
        return Contents(items)
    images = [item.id for item in items if item.refused is None]
    choices = (
        ""
        if option is None
        else f". Or choose: {option}folders takes the sub-folders as classes, {option}none all images without classes"
    )
    notes: list[str] = []
    if labels == "auto":
        table = _find_table(root, items, notes, choices)
        if table is not None and table.has_labels:
            return _by_table(root, table, items, notes, choices)
        if table is not None:
            return Contents(items, notes=notes)
        _refuse_unclear(root, images, choices)
    # In alphabetical order, also for numbers (1, 10, 2): existing runs and prepared data depend on it.
    class_names = _folders(images)
    if len(class_names) == 1:
        notes.append(f"the only class, {class_names[0]}, tells a model nothing")
    elif class_names and all(map(str.isdecimal, class_names)) and class_names != sorted(class_names, key=int):
        shown = shortened(class_names, 12)
        notes.append(f"the classes are the sub-folders in alphabetical order, not numerical: {shown}")
    number = {name: label for label, name in enumerate(class_names)}
    for i, item in enumerate(items):
        outside = "outside the class folders" if class_names and "/" not in item.id else None
        items[i] = Item(item.id, number.get(item.id.partition("/")[0], 0), item.refused or outside, item.kind)
    return Contents(items, class_names, notes)


def listed_contents(file: Path) -> Contents:
    """Returns the images of a list (.txt, .tsv, .csv, .jsonl) without labels, by their paths from the list's folder.

    Raises UserError if the list cannot be read.
    """
    folder = file.parent
    rows = [(os.path.relpath(folder / row.path, folder), row.path) for row in read_table(file, False).rows]
    return Contents([Item(path, refused=None if is_there(folder, own) else "not a file") for path, own in rows])


def refuse_among(folder: Path, *sources: Path) -> None:
    """Raises UserError if output would go into a folder of `sources`, or into one with images below it (except those of
    a run that was killed early), because that folder would then count as one made by fitv2.
    """
    if not folder.is_dir():
        return
    foreign = made_by_fitv2(folder, {path.name for path in folder.iterdir()}) in (None, SAMPLES)
    is_source = any(source.is_dir() and folder.samefile(source) for source in sources)
    images = (folder / item.id for item in list_files(folder) if item.refused is None)
    if is_source or (foreign and not all(map(_is_contact_sheet_file, images))):
        raise UserError(f"{folder} holds images: choose another --out, in a folder of its own")


def _is_contact_sheet_file(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return is_contact_sheet(file.read(1024))


def _folders(images: Iterable[str]) -> list[str]:
    """Returns the sub-folders of the root that hold images."""
    return sorted({name.partition("/")[0] for name in images if "/" in name})


def _find_table(root: Path, items: Sequence[Item], notes: list[str], choices: str) -> Table | None:
    """Returns the table that has the labels, or says that there are none; adds to `notes` what users should know."""
    every = {item.id: read_table(root / item.id) for item in items if item.id.rpartition("/")[2] in TABLES}
    deeper = [name for name, table in every.items() if "/" in name and table.has_labels]
    tables = [table for name, table in every.items() if "/" not in name]
    labelling = [table for table in tables if table.has_labels]
    if len(labelling) > 1:
        names = " and in ".join(table.name for table in labelling)
        raise UserError(f"{root} has labels in {names}: remove or rename all but one{choices}")
    if deeper and not labelling:
        within = Path(root, deeper[0]).parent
        raise UserError(f"the labels are in {shortened(deeper)}, below {root}: give that folder, {within}{choices}")
    without = [table for table in tables if not (table.has_labels or any(row.captions for row in table.rows))]
    notes += [table.note or f"{table.name} holds no labels" for table in without]
    notes += [
        f"{item.id} is not read; if it holds the labels, save it as metadata.csv"
        for item in items
        if item.kind in UNREAD and "/" not in item.id and item.id not in TABLES
    ]
    return next(iter(labelling or [table for table in tables if table.says_none]), None)


def _by_table(root: Path, table: Table, items: Sequence[Item], notes: list[str], choices: str) -> Contents:
    """Returns every file, labelled by a table, and then the rows of the table that have no file."""
    label_of = {normpath(row.path): row.label for row in table.rows}
    images = [item.id for item in items if item.refused is None]
    known = [name for name in images if name in label_of]
    if 2 * len(known) < len(images):
        unknown = next(name for name in images if name not in label_of)
        raise UserError(
            f"{table.name} lists {len(known)} of the {counted(len(images), 'image')} below {root}, not {unknown}: "
            f"complete it{choices}"
        )
    given, class_names = labelled(known, [label_of[name] for name in known], str(root / table.name))
    listed = {item.id: item for item in given}
    every = [
        listed.get(item.id)
        or replace(item, refused=OF_LABELS if item.id == table.name else item.refused or f"not in {table.name}")
        for item in items
    ]
    every += [
        Item(name, refused="not a file")
        for name in label_of
        if name not in listed and name != table.name and not is_there(root, name)
    ]
    notes.append(
        f"the labels are those of {table.name}" + ("; the sub-folders are no classes" if _folders(images) else "")
    )
    return Contents(every, class_names, notes)


def _refuse_unclear(root: Path, images: Sequence[str], choices: str) -> None:
    """Raises UserError if sub-folders may or may not be classes; the message offers each reading."""
    loose = sum("/" not in name for name in images)
    folders = Counter(name.partition("/")[0] for name in images if "/" in name)
    names = sorted(folders)
    if loose and folders:
        told = shortened([f"{name}/ ({folders[name]})" for name in names])
        raise UserError(
            f"{root} holds {counted(loose, 'loose image')} beside {counted(len(folders), 'sub-folder')} with images: "
            f"{told}. Move either the loose images or the sub-folders away{choices}"
        )
    within = sorted({name.split("/")[1] for name in images if name.count("/") > 1})
    if len(names) == 1 and len(within) > 1:
        raise UserError(
            f"all images of {root} are in its only sub-folder {names[0]}, and there in {shortened(within)}: give "
            f"{root / names[0]} to use these as classes{choices}"
        )
    if len(names) > 1 and SPLITS.issuperset(name.lower() for name in names):
        part = next((name for name in names if name.lower().startswith("train")), names[0])
        raise UserError(
            f"the sub-folders of {root} are {', '.join(names)}, parts of a data set and not classes: give one of them, "
            f"such as {root / part}{choices}"
        )

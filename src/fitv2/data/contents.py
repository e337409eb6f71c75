"""What a folder of images holds: which of its files are data, of which class, and why the others are not.

Labels come from a table beside the images (metadata.jsonl, metadata.csv, dataset.json) if there is one, else from the
sub-folders of the root. If this is not clear, an error asks; nothing is guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import normpath
from typing import Literal

from ..errors import UserError
from ..messages import counted, shortened
from ..sample_list import is_contact_sheet
from .labelling import Item, labelled
from .listing import SAMPLES, Listed, class_of, classes_of, list_files, made_by_fitv2
from .tables import Table, is_there, read_table

Labels = Literal["auto", "folders", "none"]
TABLES = ("metadata.jsonl", "metadata.csv", "dataset.json")
# Files beside images that may hold labels too: not read, but mentioned in a note.
UNREAD = (".csv", ".tsv", ".jsonl", ".parquet")
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}


@dataclass
class Contents:
    """files: Everything found, in order. items: One per file, with its label or the reason why it is left out.
    class_names: In the order of the labels; empty without classes. notes: Sentences about what was decided.
    """

    files: list[Listed]
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
    refuse_own(root)
    files = list(list_files(root))
    images = [file.name for file in files if file.reason is None]
    unlabelled = [Item(file.name, refused=file.reason) for file in files]
    if labels == "none":
        return Contents(files, unlabelled)
    notes: list[str] = []
    if labels == "auto":
        table = find_table(root, files, notes, option)
        if table is not None and table.has_labels:
            return by_table(root, table, files, notes, option)
        if table is not None:
            return Contents(files, unlabelled, notes=notes)
        refuse_unclear(root, images, option)
    class_names = classes_of(images)
    if len(class_names) == 1:
        notes.append(f"the only class, {class_names[0]}, tells a model nothing{advice(option, 'none')}")
    elif class_names and all(map(str.isdecimal, class_names)) and class_names != sorted(class_names, key=int):
        shown = shortened(class_names, 12)
        notes.append(f"the classes are the sub-folders in alphabetical order, not numerical: {shown}")
    outside = "outside the class folders" if class_names else None
    number = {name: label for label, name in enumerate(class_names)}
    items = [
        Item(file.name, number.get(own or "", 0), file.reason or (None if own else outside))
        for file in files
        for own in [class_of(file.name)]
    ]
    return Contents(files, items, class_names, notes)


def refuse_own(root: Path) -> None:
    """Raises UserError for a folder that fitv2 made. Samples are the exception: they may be given by name."""
    made = made_by_fitv2({path.name for path in root.iterdir()})
    if made not in (None, SAMPLES):
        raise UserError(
            f"{root} is {made}, made by fitv2, and not a folder of images: give the folder of the images themselves"
        )


def refuse_among(folder: Path, *sources: Path) -> None:
    """Raises UserError if output would go into a folder of `sources`, or into one with images below it (except those of
    a run that was killed early), because that folder would then count as one made by fitv2.
    """
    if not folder.is_dir():
        return
    foreign = made_by_fitv2({path.name for path in folder.iterdir()}) in (None, SAMPLES)
    is_source = any(source.is_dir() and folder.samefile(source) for source in sources)
    images = (folder / file.name for file in list_files(folder) if file.reason is None)
    if is_source or (foreign and not all(map(is_contact_sheet_file, images))):
        raise UserError(f"{folder} holds images: choose another --out, in a folder of its own")


def is_contact_sheet_file(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return is_contact_sheet(file.read(1024))


def find_table(root: Path, files: Sequence[Listed], notes: list[str], option: str | None) -> Table | None:
    """Returns the table that has the labels, or says that there are none; adds to `notes` what users should know."""
    every = {f.name: read_table(root / f.name) for f in files if f.name.rpartition("/")[2] in TABLES}
    deeper = [name for name, table in every.items() if "/" in name and table.has_labels]
    tables = [table for name, table in every.items() if "/" not in name]
    labelling = [table for table in tables if table.has_labels]
    if len(labelling) > 1:
        names = " and in ".join(table.name for table in labelling)
        raise UserError(f"{root} has labels in {names}: remove or rename all but one{advice(option, 'folders')}")
    if deeper and not labelling:
        raise UserError(
            f"the labels are in {shortened(deeper)}, below {root}: give that folder, "
            f"{Path(root, deeper[0]).parent}, instead{advice(option, 'folders')}"
        )
    notes += [table.note or f"{table.name} holds no labels" for table in tables if not table.has_labels]
    notes += [
        f"{file.name} is not read; if it holds the labels, save it as metadata.csv"
        for file in files
        if file.kind in UNREAD and "/" not in file.name and file.name not in TABLES
    ]
    silent = [table for table in tables if table.says_none]
    return next(iter(labelling or silent), None)


def by_table(root: Path, table: Table, files: Sequence[Listed], notes: list[str], option: str | None) -> Contents:
    """Returns every file, labelled by a table, and then the rows of the table that have no file."""
    label_of = {normpath(row.path): row.label for row in table.rows}
    images = [file.name for file in files if file.reason is None]
    known = [name for name in images if name in label_of]
    if 2 * len(known) < len(images):
        unknown = next(name for name in images if name not in label_of)
        raise UserError(
            f"{table.name} lists {len(known)} of the {counted(len(images), 'image')} below {root}, not {unknown}: "
            f"complete it{advice(option, 'folders')}{advice(option, 'none')}"
        )
    items, class_names = labelled(known, [label_of[name] for name in known], str(root / table.name))
    given = {item.id: item for item in items} | {table.name: Item(table.name, refused="read for its labels")}
    unlisted = f"not in {table.name}"
    every = [given.get(file.name, Item(file.name, refused=file.reason or unlisted)) for file in files]
    lost = [name for name in label_of if name not in given and not is_there(root, name)]
    notes.append(
        f"the labels are those of {table.name}" + ("; the sub-folders are not classes" if classes_of(images) else "")
    )
    return Contents(
        [*files, *(Listed(name, "image", "not a file") for name in lost)],
        [*every, *(Item(name, refused="not a file") for name in lost)],
        class_names,
        notes,
    )


def refuse_unclear(root: Path, images: Sequence[str], option: str | None) -> None:
    """Raises UserError if sub-folders may or may not be classes; the message offers each reading."""
    folders = Counter(class_of(name) or "" for name in images)
    loose = folders.pop("", 0)
    names = sorted(folders)
    if loose and folders:
        told = shortened([f"{name}/ ({folders[name]})" for name in names])
        raise UserError(
            f"{root} holds {counted(loose, 'image')} and, beside {'it' if loose == 1 else 'them'}, "
            f"{counted(len(folders), 'sub-folder')} with images: {told}. "
            f"Which do you mean?{choices(option, loose, len(images))}"
        )
    within = {name.split("/")[1] for name in images if name.count("/") > 1}
    if len(names) == 1 and len(within) > 1:
        shown = shortened(sorted(within))
        raise UserError(
            f"all images of {root} are in its only sub-folder {names[0]}, and there in {shown}: give {root / names[0]} "
            f"to use these as classes{advice(option, 'folders')}"
        )
    if len(names) > 1 and SPLITS.issuperset(name.lower() for name in names):
        part = next((name for name in names if name.lower().startswith("train")), names[0])
        raise UserError(
            f"the sub-folders of {root} are {', '.join(names)}, parts of a data set and not classes: give one of them, "
            f"such as {root / part}{advice(option, 'folders')}"
        )


def choices(option: str | None, loose: int, every: int) -> str:
    """Returns what to add to the command for each reading, as the end of a sentence."""
    if option is None:
        return " Give a folder that holds nothing else, or move the others away"
    return (
        f" Add one of these to the command, or move the others away:\n"
        f"  {option}folders  the {every - loose} in sub-folders, which are the classes\n"
        f"  {option}none     all {every}, without classes"
    )


def advice(option: str | None, value: Literal["folders", "none"]) -> str:
    """Returns the alternative, as the end of a sentence."""
    meaning = "the sub-folders of the root as classes" if value == "folders" else "all images without classes"
    return "" if option is None else f"; {option}{value} uses {meaning}"

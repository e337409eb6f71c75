"""Tables of images and labels: lists, and the metadata that data sets carry beside their images.

    .txt, .tsv          path, tab, label; quotes have no meaning
    .csv                path, comma, label; quoted as by spreadsheets
    .jsonl              an object per line, as metadata.jsonl of Hugging Face
    dataset.json        {"labels": [[path, label], ...]}, of StyleGAN and EDM

A header line may name the columns, in any order; without one they are path and label. Empty lines are ignored, and so
are comments: lines that begin with # and name no file.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from posixpath import normpath
from typing import Any, NamedTuple

from ..errors import UserError
from ..messages import shortened
from .formats import EXTENSIONS

LISTS = (".txt", ".tsv", ".csv", ".jsonl")
# Names of columns, the most telling first.
PATHS = ("file_name", "filename", "file", "file_path", "filepath", "path", "image", "image_path", "image_file")
PATHS += ("image_name", "image_file_name", "img", "img_path", "images", "name", "image_id", "id")
LABELS = ("label", "labels", "class", "class_name", "class_label", "category", "target", "cls", "class_id")
LABELS += ("class_index", "label_id", "label_name", "y")
# `str.splitlines` would also split at separators that belong to a text, such as U+2028.
LINE_END = re.compile(r"\r\n|\r|\n")
# Of which an empty line of a table consists.
BLANK = " \t,;"
CAPTIONS = ("text", "caption", "captions", "prompt", "description")
UNLABELLED = "dataset.json says that these images have no labels"


class Row(NamedTuple):
    """path: As written. label: As text; None without one. line: Its number, counted from 1. captions: Any number."""

    path: str
    label: str | None
    line: int
    captions: tuple[str, ...] = ()


class Table(NamedTuple):
    """name: Of the file. rows: Each path once, with the captions of all its rows. repeated: Rows that tell nothing but
    the path and label of an earlier row. note: What users should know about the table. says_none: Whether it says that
    the images have no labels.
    """

    name: str
    rows: list[Row]
    repeated: list[Row]
    note: str | None = None
    says_none: bool = False

    @property
    def has_labels(self) -> bool:
        return any(row.label for row in self.rows)


def read_table(file: Path, with_labels: bool = True) -> Table:
    """Reads the images, labels and captions of a table; without `with_labels`, labels do not count.

    Raises:
        UserError: The table cannot be read, or its meaning is unclear; the message says where, and what to do.
    """
    if not file.is_file():  # On a pipe, reading would wait for ever.
        raise UserError(f"{file} is not a file, or a link to none: correct or remove it")
    if file.suffix.lower() == ".json":
        rows, note = _of_dataset_json(file)
    else:
        read = _of_objects if file.suffix.lower() == ".jsonl" else _of_lines
        rows, note = read(file, with_labels)
    first: dict[str, Row] = {}
    repeated = []
    for path, label, line, captions in rows:
        # Tables may come from Windows: with slashes, if only that file exists.
        slashes = path.replace("\\", "/")
        if slashes != path and not is_there(file.parent, path) and is_there(file.parent, slashes):
            path = slashes
        row = Row(path, label if with_labels else None, line, captions)
        key = normpath(path)
        before = first.setdefault(key, row)
        if before.label != row.label:
            raise UserError(
                f"{file} has two labels for {path}: {before.label or 'none'} (line {before.line}) and "
                f"{row.label or 'none'} (line {line}); remove one of the lines"
            )
        if before is not row and not captions:
            repeated.append(row)
        elif before is not row:
            first[key] = before._replace(captions=tuple(dict.fromkeys(before.captions + captions)))
    return Table(file.name, list(first.values()), repeated, note, note == UNLABELLED)


def label_text(value: Any) -> str | None:
    """Returns a JSON label as text; None for NaN, which pandas writes where there is none.

    Raises ValueError for lists and objects, which cannot be labels.
    """
    if value is None or isinstance(value, str):
        return (value or "").strip() or None
    if value != value:
        return None
    if isinstance(value, list | dict):
        raise ValueError(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def caption_texts(value: Any, where: str) -> tuple[str, ...]:
    """Returns the captions in a value of a table: a text or a list of texts; none in anything else.

    Raises UserError for bytes that are not UTF-8, which no text encoder reads. where: What holds the value.
    """
    values = value if isinstance(value, list | tuple) else [value]
    texts = tuple(text.strip() for text in values if isinstance(text, str) and text.strip())
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: the caption is not text in UTF-8; save the file in UTF-8") from None
    return texts


def first_of(wanted: Sequence[str], names: Sequence[str]) -> str | None:
    """Returns which of these keys or column names is one of those wanted, the most telling of them; None if none is."""
    plain = {_plain(name): name for name in reversed(names)}
    return next((plain[name] for name in wanted if name in plain), None)


def is_there(folder: Path, path: str) -> bool:
    """Whether a path of a table is a file; text that cannot be a path is not."""
    try:
        return (folder / path).is_file()
    except (OSError, ValueError):
        return False


def _of_dataset_json(file: Path) -> tuple[list[Row], str | None]:
    try:
        pairs = json.loads(file.read_bytes())["labels"]
        rows = [Row(path, label_text(label), number) for number, (path, label) in enumerate(pairs or [], 1)]
        "".join(row.path for row in rows)  # Raises TypeError where one is no text.
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return [], f"{file.name} is not used: its labels are not pairs of a path and a class"
    return rows, None if rows else UNLABELLED


def _of_objects(file: Path, with_labels: bool) -> tuple[list[Row], str | None]:
    objects = []
    for number, line in _lines(file):
        if line.startswith("#") or not line.strip():
            continue
        try:
            objects.append((number, dict(json.loads(line).items())))
        except (ValueError, AttributeError, RecursionError):
            raise UserError(f"{file}, line {number}, is no JSON object: correct or remove that line") from None
    names = list(dict.fromkeys(name for _, content in objects for name in content))
    return _of_records(file, names, objects, with_labels)


def _of_records(
    file: Path, names: Sequence[str], records: Sequence[tuple[int, Mapping]], with_labels: bool
) -> tuple[list[Row], str | None]:
    """Returns the rows of a table whose columns have names, and a note if none of them holds the labels."""
    if not records:
        return [], None
    path, label = _columns(file, names, with_labels)
    caption, rows = first_of(CAPTIONS, names), []
    for number, record in records:
        captions = () if caption is None else caption_texts(record.get(caption), f"{file}, line {number}")
        image = _named(file, number, record.get(path))
        try:
            rows.append(Row(image, label_text(record.get(label)), number, captions))
        except ValueError:
            raise UserError(f"{file}, line {number}: {label} is no number or name; write a class there") from None
    note = f"{file.name} holds no labels, only {shortened(names)}" if label is None and len(names) > 1 else None
    return rows, note


def _of_lines(file: Path, with_labels: bool) -> tuple[list[Row], str | None]:
    lines, is_csv = list(_lines(file)), file.suffix.lower() == ".csv"
    filled = (line for _, line in lines if line.strip(BLANK))
    delimiter = "," if is_csv else "\t"
    first = min(filled, key=lambda line: line.startswith("#"), default="")
    if is_csv and delimiter not in first:
        # Spreadsheets of many countries separate by semicolons.
        delimiter = next((other for other in ";\t" if other in first), delimiter)
    split = [row for row in _split(file, lines, delimiter, is_csv) if not _is_comment(file.parent, *row[1:], delimiter)]
    if split and _is_header(file.parent, [cells for *_, cells in split[:2]]):
        names = split[0][2]
        records = [(number, _record(file, number, names, cells)) for number, _, cells in split[1:]]
        return _of_records(file, names, records, with_labels)
    return [_positional(file, *row, delimiter) for row in split], None


def _split(
    file: Path, lines: Iterable[tuple[int, str]], delimiter: str, is_csv: bool
) -> Iterator[tuple[int, str, list[str]]]:
    """Yields the rows that are not empty: number, first line and cells. In a .csv, a quoted cell may hold line ends."""
    rest = iter(lines)
    for number, line in rest:
        if not line.strip(BLANK):
            continue
        if not is_csv:
            cells = line.split(delimiter)
        else:
            comment = line.startswith("#")
            after = () if comment else (f"{more}\n" for _, more in rest)
            reader = csv.reader(chain([f"{line}\n"], after), delimiter=delimiter, strict=True, skipinitialspace=True)
            try:
                cells = next(reader)
            except csv.Error:
                if not comment:
                    raise UserError(
                        f"{file}, line {number}: a quote is opened and not closed; double a quote that belongs to a "
                        'name ("")'
                    ) from None
                cells = line.split(delimiter)
        yield number, line, cells


def _is_comment(folder: Path, line: str, cells: Sequence[str], delimiter: str) -> bool:
    """Whether a line begins with # and names no file; the name itself may hold the delimiter."""
    if not line.startswith("#"):
        return False
    paths = (*cells, line, line.rpartition(delimiter)[0])
    slashes = (path.replace("\\", "/") for path in paths)
    return not any(is_there(folder, path.strip()) for path in (*paths, *slashes))


def _record(file: Path, number: int, names: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    """Returns a row below a header; of columns with equal names, the first counts. Raises UserError if it is longer."""
    if any(cell.strip() for cell in cells[len(names) :]):
        raise UserError(
            f"{file}, line {number}, has {len(cells)} columns and the header {len(names)}: correct it; in a .csv, a "
            "text that holds the separator needs quotes around it"
        )
    return dict(reversed([*zip(names, map(str.strip, cells), strict=False)]))


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yields the lines with their numbers; bytes that are not UTF-8 stay."""
    with file.open("rb") as opened:
        content = opened.read()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16") if wide else content.decode("utf-8-sig", "surrogateescape")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not a list of images: {error}") from None
    if "\0" in text:
        raise UserError(f"{file} is not a list of images: it is not text")
    yield from enumerate(LINE_END.split(text), 1)


def _is_header(folder: Path, rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first of these rows names the columns."""
    cells = [cell.strip() for cell in rows[0]]
    if is_there(folder, cells[0]) or any(Path(cell).suffix.lower() in EXTENSIONS for cell in cells):
        return False
    if first_of((*PATHS, *LABELS, *CAPTIONS), cells):
        return True
    return len(rows) > 1 and len(rows[1]) == len(cells) > 1 and is_there(folder, rows[1][0].strip())


def _columns(file: Path, names: Sequence[str], with_labels: bool) -> tuple[str, str | None]:
    """Returns the columns of paths and of labels, or None where there are none of these."""
    path, label, is_json = first_of(PATHS, names), first_of(LABELS, names), file.suffix.lower() == ".jsonl"
    if path is None:
        others = [name for name in names if name != label]
        if len(others) != 1 and is_json:
            raise UserError(
                f"{file} has no key file_name with the paths of the images; its keys are {shortened(names)}"
            )
        path = (others or names)[0]
    if not with_labels:
        return path, None
    if label is None and not is_json:
        others = [name for name in names if name != path and _plain(name) not in (*CAPTIONS, *PATHS)]
        if len(others) > 1:
            raise UserError(
                f"{file}: which of the columns {shortened(others)} holds the labels? Rename that one to label"
            )
        label = next(iter(others), None)
    return path, label


def _positional(file: Path, number: int, line: str, cells: list[str], delimiter: str) -> Row:
    """Returns path and label of a line without a header above it; the path itself may hold the delimiter."""
    while len(cells) > 1 and not cells[-1].strip():
        cells, line = cells[:-1], line.rpartition(delimiter)[0]
    if len(cells) == 1 or is_there(file.parent, line):
        path, label = cells[0] if len(cells) == 1 else line, None
    else:
        path, label = cells[0] if len(cells) == 2 else line.rpartition(delimiter)[0], cells[-1].strip()
    if label is not None and len(cells) > 2 and not is_there(file.parent, path.strip()):
        raise UserError(
            f"{file}, line {number}, has {len(cells)} columns and no header says which: begin the list with a line "
            f"such as file_name{delimiter}label"
        )
    # Spaces may belong to the name of the file.
    return Row(path if is_there(file.parent, path) else _named(file, number, path.strip()), label, number)


def _named(file: Path, number: int, path: Any) -> str:
    """Returns the path in a row as text. Raises UserError if there is none."""
    if path in (None, ""):
        raise UserError(f"{file}, line {number}, names no image: correct or remove that line")
    return str(path)


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", name.strip().lower()).strip("_")

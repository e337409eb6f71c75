"""Turns labels from text into classes. Whole numbers are class ids and keep their value; anything else is a name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..errors import UserError
from ..messages import counted, shortened
from .listing import Item

# Larger whole numbers do not count as class ids: a table of all classes would fill the memory.
MOST_CLASSES = 100_000
# As tables write whole numbers: pandas makes 3.0 of them in a column with gaps. Python reads no more than 4300 digits.
WHOLE = re.compile(r"[+-]?\d{1,4000}(\.0+)?")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
# Classes that are listed for people.
MOST_LISTED = 50
# How Hugging Face and others write an unknown class.
UNKNOWN = -1
UNLABELLED = "without a label"
WITHOUT = "use none of them (prepare: --labels none; train: --set data.labels=none)"


def labelled(names: Sequence[str], labels: Sequence[str | None], where: str) -> tuple[list[Item], list[str]]:
    """Returns the items, and the class names in the order of their labels; no classes if nothing has a label.

    If some items have a label, items without one, or with -1, are refused.

    Args:
        names: Of the images, in order.
        labels: Of each image; None or empty if it has none.
        where: What holds the labels, for messages.

    Raises:
        UserError: Labels mix numbers and names, are numbers but not whole ones, or are missing for most images.
    """
    given = {label for label in labels if label}
    if given and all(map(WHOLE.fullmatch, given)):
        ids = {label: int(label.partition(".")[0]) for label in given}
        numbers = {label: number for label, number in ids.items() if number != UNKNOWN}
        lowest, highest = min(numbers.values(), default=0), max(numbers.values(), default=-1)
        if lowest < 0:
            raise UserError(f"{where} has the label {lowest}; class ids start at 0, and -1 means no label")
        known = list(range(highest + 1))
        if highest >= MOST_CLASSES:  # Catalogue numbers: used as names, but in numerical order.
            known = sorted(set(numbers.values()))
            place = {number: label for label, number in enumerate(known)}
            numbers = {label: place[number] for label, number in numbers.items()}
        class_names = list(map(str, known))
    else:
        _refuse_numbers(given, where)
        class_names = sorted(given)
        numbers = {label: number for number, label in enumerate(class_names)}
    items = [
        Item(name, refused=UNLABELLED) if numbers and label not in numbers else Item(name, numbers.get(label or "", 0))
        for name, label in zip(names, labels, strict=True)
    ]
    refuse_unlabelled(items, where)
    return items, class_names


def _refuse_numbers(given: set[str], where: str) -> None:
    """Raises UserError for numbers among names, and for numbers that are not whole."""
    numbers = sorted(filter(NUMBER.fullmatch, given))
    names = sorted(given.difference(numbers))
    if numbers and names:
        raise UserError(
            f"the labels of {where} mix numbers ({numbers[0]}) and names ({names[0]}): write all of them as ids or all "
            f"as names, or {WITHOUT}"
        )
    if numbers:
        fraction = next(label for label in numbers if not WHOLE.fullmatch(label))
        raise UserError(f"{where} has the label {fraction}, which is not a class: write ids (0, 1, 2) or names")


def refuse_unlabelled(items: Sequence[Item], where: str) -> None:
    """Raises UserError where most items have no label."""
    missing = [item.id for item in items if item.refused]
    if 2 * len(missing) > len(items):
        raise UserError(
            f"{len(missing)} of {counted(len(items), 'image')} have no label in {where}, the first {missing[0]}: add "
            f"the labels, or {WITHOUT}"
        )


def count_classes(labels: np.ndarray | Sequence[int], class_names: Sequence[str]) -> dict[str, int]:
    """Counts the images of each class by its name, in the order of the labels; empty without classes.

    Where several classes share a name, the later ones get their number appended. labels: (N,).
    """
    counts = np.bincount(np.asarray(labels, np.int64), minlength=len(class_names)).tolist()
    seen: dict[str, int] = {}
    for number, (name, count) in enumerate(zip(class_names, counts, strict=False)):
        seen[name if name not in seen else f"{name} ({number})"] = count
    return seen


def class_lines(classes: Mapping[str, int]) -> Iterator[str]:
    """Yields the classes with their numbers of images as lines for people, in the order of the labels."""
    if not classes:
        yield "no classes"
        return
    shown = shortened([f"{name} {count:,}" for name, count in classes.items()], MOST_LISTED)
    yield f"{counted(len(classes), 'class', 'classes')}: {shown}"
    if empty := sum(not count for count in classes.values()):
        yield f"{counted(empty, 'class has', 'classes have')} no image, and cannot be learned"

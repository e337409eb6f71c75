"""Classes by number and by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from .errors import UserError
from .messages import advised, shortened

# Classes that a message lists.
TOLD = 20


@dataclass(frozen=True)
class Classes:
    """Classes 0 to count - 1, some or all of them with names; the number `count` stands for "no class"."""

    count: int
    names: Mapping[int, str]

    def number(self, label: int | str) -> int:
        """Returns the number of a class given by name or number. Raises UserError for an unknown one."""
        called = [number for number, name in self.names.items() if name == label]
        if len(called) > 1:
            numbers = ", ".join(map(str, called))
            raise UserError(f"there are several classes {label!r}: give one of the numbers {numbers}")
        if called:
            return called[0]
        # Text never means "no class", but without classes "0" is the null label, the only one there is.
        highest = max(self.count, 1) - 1 if isinstance(label, str) else self.count
        number = int(label) if isinstance(label, str) and label.isdecimal() else label
        if not isinstance(number, int) or not 0 <= number <= highest:
            advice = advised(str(label), self.names.values(), f"its classes are {self}")
            raise UserError(f"there is no class {label!r} in this model{advice}")
        return number

    def __str__(self) -> str:
        if not self.names:
            return f"0 to {self.count - 1}, without names" if self.count else "none: it has no classes"
        return shortened([f"{number} {name}" for number, name in self.names.items()], TOLD)


def read_names(path: Path) -> list[str]:
    """Reads class names from a text file, one per line in the order of their numbers, without comments (#).

    Raises UserError if there is no such file or it is not text.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the class names in {path} cannot be read ({error})") from None
    return [line for line in lines if line and not line.startswith("#")]


def readable_names(folders: Sequence[str]) -> list[str]:
    """Returns the names of class folders; for the 1 000 of ImageNet, n01440764 to n15075141, those of its classes."""
    is_imagenet = len(folders) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in folders)
    return list(imagenet_names() if is_imagenet else folders)


def imagenet_names() -> Sequence[str]:
    """Returns the 1 000 classes of ImageNet, each by the first of its names in WordNet."""
    return read_names(Path(str(files("fitv2").joinpath("builtin", "imagenet-classes.txt"))))

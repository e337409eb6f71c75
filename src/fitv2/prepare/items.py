"""What every source of images is: items in a fixed order, with labels, read as bytes.

Every file that a source meets becomes an item, the unusable ones too, with the reason: nothing goes unnamed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ..data.images import UnreadableImage
from ..data.labelling import Item

# Such files are no photographs, and reading one would take the memory of the machine.
MOST_BYTES = 1 << 30


class Source(Protocol):
    """items: In an order that the source alone fixes. class_names: In the order of the labels; empty without any.
    notes: What was decided about the labels, as sentences.
    """

    items: Sequence[Item]
    class_names: list[str]
    notes: list[str]

    def read(self, index: int) -> bytes:
        """The file of an item that is not refused. Raises OSError where it cannot be read, UnreadableImage where it
        is far too large.
        """


def read_file(path: Path) -> bytes:
    check_length(path.stat().st_size)
    return path.read_bytes()


def check_length(length: int) -> None:
    if length > MOST_BYTES:
        raise UnreadableImage(f"too large: {length} bytes, limit {MOST_BYTES}")

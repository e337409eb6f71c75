"""The base of every source of images: items in a fixed order, with labels and captions, read as bytes.

Every file of a source becomes an item, even an unusable one, with the reason: every file is accounted for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from ..data.decode import MAX_BYTES
from ..data.formats import UnreadableImage
from ..data.labelling import Item

# (what is being done, how many) to a context whose value takes the number just finished.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


class Source(ABC):
    """Images and their labels.

    Attributes:
        items: In an order that depends on the source alone.
        class_names: In the order of the labels; empty without classes.
        notes: Sentences about what was decided about the labels.
    """

    items: list[Item]
    class_names: list[str]
    notes: list[str]

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Returns the file of an item that is not refused.

        Raises:
            OSError: It cannot be read.
            UnreadableImage: It is far too large.
        """

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the captions of an item, none if it has none. Raises UserError if they cannot be read."""
        return ()


def read_file(path: Path) -> bytes:
    """Returns the bytes of a file. Raises OSError, or UnreadableImage if it is far too large."""
    check_length(path.stat().st_size)
    return path.read_bytes()


def check_length(length: int) -> None:
    """Raises UnreadableImage for a file with more bytes than a photograph has: reading it could exhaust the memory."""
    if length > MAX_BYTES:
        raise UnreadableImage(f"too large: {length} bytes, limit {MAX_BYTES}")

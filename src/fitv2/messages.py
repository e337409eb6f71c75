"""Words of messages: counts, commands to copy, and the nearest names to one that is not known."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """1 image, 2 images, 10,000 images; plural: where it is not the noun and an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def command(*words: object) -> str:
    """A command of ours as a shell takes it, whatever is in its words."""
    return shlex.join(["fitv2", *map(str, words)])


def suggestion(word: str, known: Iterable[str]) -> str:
    """The sentence part that offers the nearest of the known words, or nothing where none is near."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(by_lower[name] for name in near)}?" if near else ""

"""Parts of messages: counts, commands to copy, and suggestions for misspelt names; the refusal of unknown ones."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from .errors import UserError


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """1 image, 2 images, 10,000 images. plural: needed unless it is the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def command(*words: object) -> str:
    """A fitv2 command, quoted for a shell."""
    return shlex.join(["fitv2", *map(str, words)])


def shortened(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def suggestion(word: str, known: Iterable[str], shown: Mapping[str, str] | None = None) -> str:
    """The end of a sentence that suggests the nearest known words; empty if none is near. shown: What they become."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=3, cutoff=0.6)
    names = [by_lower[name] for name in near]
    return f"; did you mean {' or '.join((shown or {}).get(name, name) for name in names)}?" if near else ""


def advised(word: str, known: Iterable[str], advice: str) -> str:
    """The end of a sentence about an unknown word: the nearest known words, if any is near, and then the advice."""
    near = suggestion(word, known)
    return f"{near} {advice[0].upper()}{advice[1:]}" if near else f"; {advice}"


def suggestion_beside(folder: Path, mark: str) -> str:
    """As `suggestion`, of the folders with a file `mark` beside one that does not exist."""
    if folder.exists() or not folder.parent.is_dir():
        return ""
    known = {path.name: str(path) for path in folder.parent.iterdir() if (path / mark).is_file()}
    return suggestion(folder.name, known, known)


def suggestion_of(word: str, sentence: str) -> str:
    """As `suggestion`, where a sentence, of a library, has the known words in single quotes."""
    return suggestion(word, re.findall("'([^']*)'", sentence))


def check_known(what: str, name: str, known: Collection[str]) -> None:
    """Raises UserError, with the known names and the nearest of them, for a name that is not known."""
    if name not in known:
        advice = advised(str(name), known, f"choose from {', '.join(known)}")
        raise UserError(f"there is no {what} {name!r}{advice}")

"""Checks every file of a folder once, in threads. A cache file makes later starts fast."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.progress import track

from ..messages import counted
from ..system.atomic import write_text
from ..system.limits import available_cores
from .formats import advice

logger = logging.getLogger(__name__)

# Counts the rules of what is a good image: after a change all are checked again.
_CACHE_VERSION = 4
BLOCK = 512
MOST_LISTED = 20
T = TypeVar("T")
R = TypeVar("R")
# A file by its path to a few whole numbers about it, or the reason why it cannot be used.
Check = Callable[[Path], list[int] | str]


@dataclass
class ScanReport:
    """What became of each file under the root.

    Attributes:
        found: Number of files with the extension of an image; each is usable or in `skipped`.
        skipped: (path relative to the root, reason).
        ignored: Number of the other files by extension ("hidden" for names that begin with a dot).
    """

    root: str
    found: int = 0
    usable: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)

    def summary(self) -> str:
        """Returns a few lines of text: the counts, and the first skipped files with their reasons."""
        found = counted(self.found, "image file")
        lines = [f"{self.root}: {found}, {self.usable} usable, {len(self.skipped)} skipped"]
        lines += skipped_lines(self.skipped, self.ignored)
        # File names may hold bytes that no terminal can show.
        return "\n".join(lines).encode(errors="replace").decode()

    def write(self, path: str | Path) -> None:
        """Writes the whole report as JSON."""
        content = asdict(self) | {"skipped_by_reason": count_reasons(self.skipped)}
        write_text(Path(path), json.dumps(content, indent=1))


def count_reasons(skipped: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Counts skipped files by the kind of the reason, the text before a colon; the most frequent first."""
    return dict(Counter(reason.partition(":")[0] for _, reason in skipped).most_common())


def skipped_lines(skipped: Sequence[tuple[str, str]], ignored: Mapping[str, int], where: str = "") -> Iterator[str]:
    """Yields lines: the numbers of skipped files by reason, the first of these files, and the numbers of ignored ones.

    ignored: By extension, as in `ScanReport`. where: What lists all files.
    """
    yield from (f"  {count} skipped: {reason}" for reason, count in count_reasons(skipped).items())
    yield from (f"    {name}: {reason}" for name, reason in skipped[:MOST_LISTED])
    if len(skipped) > MOST_LISTED:
        yield f"    and {len(skipped) - MOST_LISTED} more{where}"
    if ignored:
        kinds = ", ".join(f"{count} {extension}" for extension, count in sorted(ignored.items()))
        yield f"  {sum(ignored.values())} ignored, not images by their names: {kinds}"
        yield from (f"    {line}" for line in advice(ignored))


def check_all(
    root: Path, names: list[str], check: Check, width: int, cache_file: Path | None
) -> tuple[np.ndarray, dict[int, str]]:
    """Checks every file that the cache does not know.

    An entry of the cache counts while the file's size and time are the same. Only good files have one, so a file that
    was unreadable for a passing reason gets another chance.

    Args:
        width: How many numbers `check` gives for a good file.

    Returns:
        These numbers, (good files, width) int64, in the order of the names; and the reasons for the other files by
        their place in `names`.
    """
    # In columns: with a list for each of a million images, reading them takes longer than looking at the files.
    known, numbers = _read_cache(cache_file, 2 + width)
    row_of = {name: row for row, name in enumerate(known)}
    rows = np.fromiter((row_of.get(name, -1) for name in names), np.int64, len(names))
    stamps = np.array([_stamp(f"{root}/{name}") for name in names], np.int64).reshape(-1, 2)
    same = rows >= 0
    same[same] = (numbers[rows[same], :2] == stamps[same]).all(1)
    found, good = np.zeros((len(names), width), np.int64), same.copy()
    found[same] = numbers[rows[same], 2:]
    reasons: dict[int, str] = {}
    todo = np.flatnonzero(~same).tolist()
    logger.info("%s: checking %s, %d known from an earlier start", root, counted(len(todo), "file"), same.sum())
    console = Console(stderr=True)
    hidden = not todo or not console.is_terminal
    try:
        results = in_threads(min(8, available_cores()), lambda i: check(root / names[i]), todo)
        shown = track(results, "Checking images", len(todo), console=console, transient=True, disable=hidden)
        for i, outcome in zip(todo, shown, strict=True):
            if isinstance(outcome, str):
                reasons[i] = outcome
            else:
                found[i], good[i] = outcome, True
    finally:  # An interrupted scan of a million images continues where it stopped.
        if cache_file is not None and (good.sum() > same.sum() or good.sum() < len(known)):
            kept = [names[i] for i in np.flatnonzero(good).tolist()]
            _write_cache(cache_file, kept, np.hstack((stamps, found))[good])
    return found[good], reasons


def in_threads(workers: int, work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Yields the results in the order of the items; in blocks, because the pool keeps an object for every task."""
    with ThreadPoolExecutor(workers) as pool:  # Pillow's decoders release the interpreter lock.
        for start in range(0, len(items), BLOCK):
            yield from pool.map(work, items[start : start + BLOCK])


def _stamp(path: str) -> tuple[int, int]:
    """(bytes, time of the last change in ns); (-1, -1) for a broken link."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _read_cache(cache_file: Path | None, width: int) -> tuple[list[str], np.ndarray]:
    """Returns what a cache file of this version holds, else nothing: N names, and (N, width) int64 with bytes,
    mtime_ns and what the check found.
    """
    nothing = [], np.zeros((0, width), np.int64)
    if cache_file is None or not cache_file.exists():
        return nothing
    try:
        content = json.loads(cache_file.read_bytes())
        if content["version"] != _CACHE_VERSION:
            return nothing
        return content["names"], np.array(content["numbers"], np.int64).reshape(len(content["names"]), width)
    except (ValueError, TypeError, KeyError):
        logger.warning("%s is not a cache of this version or is damaged: it is made again", cache_file)
    return nothing


def _write_cache(cache_file: Path, names: list[str], numbers: np.ndarray) -> None:
    content = {"version": _CACHE_VERSION, "names": names, "numbers": numbers.ravel().tolist()}
    try:
        write_text(cache_file, json.dumps(content))
    except OSError as error:
        logger.warning("%s cannot be written, so the next start checks all images again: %s", cache_file, error)

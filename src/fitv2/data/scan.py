"""Every file of a folder checked once, in threads; a cache file makes later starts fast."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from ..atomic import write_text
from ..cores import available_cores

logger = logging.getLogger(__name__)

# Counts the rules of what is a good image: after a change all are checked again.
_CACHE_VERSION = 3
BLOCK = 512
T, R = TypeVar("T"), TypeVar("R")
# A file by its path to a few whole numbers about it, or the reason why it cannot be used.
Check = Callable[[Path], list[int] | str]


def check_all(root: Path, names: list[str], check: Check, cache_file: Path | None) -> dict[str, list[int] | str]:
    """What `check` says of each file, in the order of the names; only those are checked that the cache lacks.

    An entry of the cache counts while the file's size and time are the same. Only good files have one, so a file that
    was unreadable for a passing reason gets another chance.
    """
    cache = _read_cache(cache_file)
    stamps = {name: _stamp(root / name) for name in names}
    known = {name: cache[name][2:] for name in names if name in cache and cache[name][:2] == stamps[name]}
    todo = [name for name in names if name not in known]
    checked: dict[str, list[int] | str] = {}
    workers = min(8, available_cores())
    logger.info("%s: checking %d picture files, %d known from an earlier start", root, len(todo), len(known))
    try:
        results = in_threads(workers, lambda name: check(root / name), todo)
        for name, outcome in zip(todo, _progress(results, len(todo)), strict=True):
            checked[name] = outcome
    finally:  # An interrupted scan of a million pictures goes on where it stopped.
        outcomes = {name: known.get(name) or checked.get(name) for name in names}
        entries = {name: stamps[name] + found for name, found in outcomes.items() if isinstance(found, list)}
        if cache_file is not None and entries != cache:
            _write_cache(Path(cache_file), entries)
    return outcomes


def in_threads(workers: int, work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """The results in the order of the items; in blocks, because the pool keeps an object for every task given."""
    with ThreadPoolExecutor(workers) as pool:  # Pillow's decoders release the interpreter lock.
        for start in range(0, len(items), BLOCK):
            yield from pool.map(work, items[start : start + BLOCK])


def _progress(outcomes: Iterator[list[int] | str], total: int) -> Iterator[list[int] | str]:
    console = Console(stderr=True)
    disable = total == 0 or not console.is_terminal
    return track(outcomes, "Checking pictures", total=total, console=console, transient=True, disable=disable)


def _stamp(path: Path) -> list[int] | None:
    """[bytes, time of the last change in ns], or None for a broken link."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _read_cache(cache_file: Path | None) -> dict[str, list[int]]:
    """Name to [bytes, mtime_ns, what the check found]; empty when there is no cache file of this version."""
    if cache_file is None or not Path(cache_file).exists():
        return {}
    try:
        content = json.loads(Path(cache_file).read_bytes())
        if content["version"] == _CACHE_VERSION:
            return content["pictures"]
    except (ValueError, TypeError, KeyError):
        logger.warning("%s is not a cache of this program or is damaged: it is made anew", cache_file)
    return {}


def _write_cache(cache_file: Path, entries: dict[str, list[int]]) -> None:
    try:
        write_text(cache_file, json.dumps({"version": _CACHE_VERSION, "pictures": entries}, indent=1))
    except OSError as error:
        logger.warning("%s cannot be written, so the next start checks every picture again: %s", cache_file, error)

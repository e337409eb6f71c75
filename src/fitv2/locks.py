"""One process at a time in a folder: a training, a preparation, an evaluation, a study.

The operating system holds the lock and frees it however the process ends, by a kill or a crash as well. The file
itself stays behind and means nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import UserError

# Hidden, so that nobody takes it for content of the folder.
LOCK = ".lock"


@contextmanager
def locked(folder: Path, what: str, wait: Callable[[], object] | None = None) -> Iterator[None]:
    """Holds the lock of `folder`, which is made if need be, for the length of a with block.

    Args:
        folder: What is to be used by one process alone.
        what: Who uses it, as a noun with its article: "a training", "an evaluation".
        wait: Called once when the lock is held elsewhere; the lock is then waited for.

    Raises:
        UserError: Another process holds the lock, and `wait` is None.
        OSError: The folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if wait is None:
            raise UserError(
                f"{folder} is in use by another process, {what}: wait until it has ended, or choose another folder"
            ) from None
        wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()

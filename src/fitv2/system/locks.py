"""One process at a time in a folder: a training, a preparation, an evaluation, a study.

The operating system holds the lock and frees it however the process ends, even by a kill or a crash. The lock file
stays behind and means nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import UserError

# Hidden, so that nobody takes it for part of the folder's content.
LOCK = ".lock"


@contextmanager
def locked(folder: Path, what: str, wait: Callable[[], object] | None = None) -> Iterator[None]:
    """Holds the lock of `folder` for the length of a with block. Makes the folder if need be.

    Args:
        folder: The folder that only one process may use.
        what: The kind of use, with its article, for the message: "a training", "an evaluation".
        wait: Called once if another process holds the lock; this process then waits for the lock.

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

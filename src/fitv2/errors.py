"""The error for mistakes of the user: the command line prints it as one sentence, without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# What torch and the system say where memory is full.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


class UserError(ValueError):
    """A wrong argument, setting, file or folder. The message says what is wrong and what to do about it.

    Any other exception, including other ValueErrors, is a fault of this program and keeps its traceback.
    """


def damaged(what: object, why: object, cure: str) -> UserError:
    """Returns the error for a file of ours that cannot be used; without permission, it is not called damaged.

    why: An exception, or a reason in words.
    """
    if isinstance(why, PermissionError):
        return UserError(f"{what} cannot be read: permission denied")
    reason = why if isinstance(why, str | OSError | UserError) else repr(why)
    return UserError(f"{what} is damaged ({reason}); {cure}")


def is_lack_of_memory(error: Exception) -> bool:
    """Whether an error says that there is not enough memory, as torch does by a RuntimeError."""
    said = isinstance(error, RuntimeError | OSError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)
    return said or isinstance(error, MemoryError)


@contextmanager
def lack_of_memory_told() -> Iterator[None]:
    """Makes a UserError of an error that says that there is not enough memory."""
    try:
        yield
    except Exception as error:
        if not is_lack_of_memory(error):
            raise
        raise UserError(" ".join(str(error).split())[:200]) from None


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Makes a UserError of what libraries raise for a model that is missing, damaged or of another kind."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # For damaged files, nearly any type.
        if is_lack_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{what} cannot be loaded; name its folder instead, or check the network ({reason})") from None

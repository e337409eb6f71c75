"""What several processes that train together have to agree on. With one process, each of these is the plain call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

T = TypeVar("T")


def first_says(ask: Callable[[], T]) -> T:
    """The answer of the first process, in all of them: what files there are may look different from elsewhere.

    An OSError there is raised in all, so that none waits for ever.
    """
    answer: list = [None, None]
    if PartialState().is_main_process:
        try:
            answer[0] = ask()
        except OSError as error:
            answer[1] = error
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def leave() -> None:
    """Ends what connects the processes: gloo's threads may otherwise abort a program that exits."""
    PartialState().destroy_process_group()

"""What several processes that train together have to agree on. With one process, each of these is the plain call."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from .errors import UserError

T = TypeVar("T")


def check_launcher() -> None:
    """Raises ValueError where accelerate was told to split weights itself, of which checkpoints here know nothing."""
    told = [name for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM") if os.environ.get(f"ACCELERATE_USE_{name}") == "true"]
    if told:
        raise UserError(
            f"accelerate was told to use {told[0]} (by an option or its configuration file): leave that away, and let "
            "--set training.sharding=fsdp split the weights"
        )


def first_says(ask: Callable[[], T]) -> T:
    """The answer of the first process, in all of them: what files there are may look different from elsewhere.

    A ValueError or OSError there is raised in all, so that none waits for ever.
    """
    answer: list = [None, None]
    if PartialState().is_main_process:
        try:
            answer[0] = ask()
        except (OSError, ValueError) as error:
            answer[1] = error
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def leave() -> None:
    """Ends what connects the processes: gloo's threads may otherwise abort a program that exits."""
    PartialState().destroy_process_group()

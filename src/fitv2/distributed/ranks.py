"""What several processes that train together have to agree on. With one process, each of these is the plain call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator, PartialState
from accelerate.utils import GradientAccumulationPlugin, TorchDynamoPlugin, broadcast_object_list

from ..device import choose_device
from ..errors import UserError
from ..locks import locked

T = TypeVar("T")

# Options of accelerate's launcher that hand the network to another library, of which checkpoints here know nothing.
LIBRARIES = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")


def check_launcher() -> None:
    """Raises UserError for an option of accelerate's launcher that would change the training."""
    told = [name for name in LIBRARIES if is_set(f"ACCELERATE_USE_{name}")]
    if told:
        raise UserError(
            f"accelerate was told to use {told[0]} (by an option or its configuration file): leave that away, and let "
            "--set training.sharding=fsdp split the weights"
        )
    if (steps := os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")) != "1":
        raise UserError(
            f"accelerate was told to accumulate gradients over {steps} steps: leave that option out, and set "
            f"training.batches_per_step instead, to {steps} times what it is now"
        )
    if (backend := os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")).lower() != "no":
        raise UserError(
            f"accelerate was told to compile with {backend}: leave that option out, and use --set training.compile=true"
        )
    if is_set("ACCELERATE_USE_CPU") and choose_device().type != "cpu" and not PartialState().device.type == "cpu":
        raise UserError("accelerate was told to use the CPU: leave that option out, and use --device cpu")


def is_set(variable: str) -> bool:
    """As accelerate reads its variables."""
    return os.environ.get(variable, "").lower() in ("y", "yes", "t", "true", "on", "1")


def new_accelerator(precision: str) -> Accelerator:
    """With all that accelerate would otherwise read from its launcher's variables, which stand in no recipe."""
    device = PartialState(cpu=choose_device().type == "cpu").device
    check_launcher()
    return Accelerator(
        mixed_precision=precision,
        cpu=device.type == "cpu",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_plugin=TorchDynamoPlugin(backend="no"),
    )


def on_rank0(ask: Callable[[], T]) -> T:
    """Runs `ask` on rank 0 and broadcasts its result, or its ValueError or OSError, to every rank.

    Checks of files go through here, because ranks may see different states of a shared disk; and an error is raised in
    all ranks, so that none waits for ever.
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


@contextmanager
def locked_on_rank0(folder: Path, what: str) -> Iterator[None]:
    """`fitv2.locks.locked` by rank 0; where the folder is in use, every rank raises UserError."""
    with ExitStack() as stack:
        on_rank0(lambda: stack.enter_context(locked(folder, what)))
        yield


def leave() -> None:
    """Destroys the process group; otherwise gloo's threads may abort the interpreter at exit."""
    PartialState().destroy_process_group()

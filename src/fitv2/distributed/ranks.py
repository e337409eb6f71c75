"""The processes of a launcher: who they are, and what they agree on. With one process, each function is a plain call.

`torchrun`, `accelerate launch` and schedulers tell each process its place by RANK, WORLD_SIZE and LOCAL_RANK.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import UserError
from ..system.device import choose_device
from ..system.locks import locked

T = TypeVar("T")

# The libraries of a group of processes, by the kind of their devices; what is on a CPU travels over gloo.
BACKENDS = {"cuda": "cpu:gloo,cuda:nccl", "xpu": "cpu:gloo,xpu:xccl"}
# What each process needs to find the others, beside WORLD_SIZE.
GIVEN = ("RANK", "MASTER_ADDR", "MASTER_PORT")
# Options of accelerate's launcher that hand the network to another library, whose checkpoints are not known here.
LIBRARIES = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """This process among those that work together: its rank, their number, and its own device."""

    process_index: int
    num_processes: int
    device: torch.device

    @property
    def is_main_process(self) -> bool:
        return self.process_index == 0

    def wait_for_everyone(self) -> None:
        """Returns when every process has called this."""
        if self.num_processes > 1:
            dist.barrier()


def join_processes(name: str | None = None, timeout: timedelta = TIMEOUT) -> Ranks:
    """Joins the processes that a launcher started together, if there are several; a second call changes nothing.

    Args:
        name: The device, as for `choose_device`; several processes give its kind alone.
        timeout: How long a process waits for the others before it gives up.

    Raises UserError for a device that is one of several, and without the variables of a launcher.
    """
    device = choose_device(name)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks(0, 1, device)
    if device.index is not None:
        raise UserError(f"--device {name} is one device for several processes; give its kind alone ({device.type})")
    if device.type in BACKENDS:
        module = torch.get_device_module(device)
        device = torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")) % module.device_count())
        module.set_device(device)
    if not dist.is_initialized():
        if missing := [name for name in GIVEN if name not in os.environ]:
            raise UserError(
                f"WORLD_SIZE={os.environ['WORLD_SIZE']} tells of several processes, and {missing[0]} is not set: start "
                "them with torchrun or accelerate launch, or unset WORLD_SIZE"
            )
        dist.init_process_group(BACKENDS.get(device.type, "gloo"), timeout=timeout)
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def destroy_process_group() -> None:
    """Leaves the group of processes; otherwise gloo's threads may abort the interpreter at exit."""
    if dist.is_initialized():
        dist.destroy_process_group()


def check_launcher(device: torch.device) -> None:
    """Raises UserError for an option of accelerate's launcher that would change a training on `device`."""

    def given(option: str) -> str:
        """The option as accelerate's launcher passes it on; empty if it is off."""
        value = os.environ.get(f"ACCELERATE_{option}", "").lower()
        return "" if value in ("", "n", "no", "f", "false", "off", "0") else value

    libraries = [name for name in LIBRARIES if given(f"USE_{name}")]
    steps, backend = given("GRADIENT_ACCUMULATION_STEPS") or "1", given("DYNAMO_BACKEND")
    problem = ""
    if libraries:
        problem = f"use {libraries[0]}: leave that option out, and shard weights by --set training.sharding=fsdp"
    elif steps != "1":
        problem = f"accumulate gradients over {steps} steps: multiply training.batches_per_step instead"
    elif backend:
        problem = f"compile with {backend}: leave that option out, and use --set training.compile=true"
    elif given("USE_CPU") and device.type != "cpu":
        problem = "use the CPU: leave that option out, and use --device cpu"
    if problem:
        raise UserError(f"accelerate was told to {problem}")


def is_rank0() -> bool:
    """Whether this process is the first, or the only one."""
    return not dist.is_initialized() or dist.get_rank() == 0


def on_rank0(ask: Callable[[], T]) -> T:
    """Runs `ask` on rank 0 and broadcasts its result, or its ValueError or OSError, to every rank.

    Checks of files go through here, because ranks may see different states of a shared disk; and an error is raised on
    every rank, so that none waits for ever.
    """
    if not dist.is_initialized():
        return ask()
    answer: list = [None, None]
    if is_rank0():
        try:
            answer[0] = ask()
        except (OSError, ValueError) as error:
            answer[1] = error
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def only_on_rank0(work: Callable[[], T]) -> T | None:
    """Runs `work` on rank 0 and returns its result there, None elsewhere; an error is raised on every rank."""
    done: list[T] = []
    on_rank0(lambda: done.append(work()))
    return done[0] if done else None


def rank0_first(work: Callable[[], T]) -> T:
    """Runs `work` on rank 0, then on the other ranks, which find what rank 0 has written. An error is raised on all."""
    done: list[T] = []
    on_rank0(lambda: done.append(work()))
    return done[0] if done else work()


@contextmanager
def locked_on_rank0(folder: Path, what: str) -> Iterator[None]:
    """`fitv2.system.locks.locked` on rank 0; if the folder is in use, every rank raises UserError."""
    with ExitStack() as stack:
        on_rank0(lambda: stack.enter_context(locked(folder, what)))
        yield


def shard_of_rank(work: Sequence[T], ranks: Ranks) -> Sequence[T]:
    """Returns this rank's part of `work`: every `num_processes`-th item."""
    return work[ranks.process_index :: ranks.num_processes]


def all_gather(results: list[T]) -> list[T]:
    """Returns the results of all ranks on every rank, in the order of the ranks."""
    if not dist.is_initialized():
        return results
    found: list[list[T] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, results)
    return [result for of_rank in found for result in of_rank or ()]


def sum_over_ranks(numbers: Tensor) -> Tensor:
    """Returns the sum of a tensor over all ranks, on every rank."""
    if dist.is_initialized():
        numbers = numbers.clone()
        dist.all_reduce(numbers)
    return numbers

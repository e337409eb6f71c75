"""Measures time, memory and the peak of a machine, so that they can be compared."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Work = Callable[[], object]
# Large enough that a product is all arithmetic, small enough to measure it often.
PEAK_SIDE = {"cpu": 2048, "cuda": 8192, "xpu": 8192, "mps": 4096}


def in_turn(
    works: Mapping[str, Work], repeats: int = 5, done: Callable[[int], None] | None = None
) -> dict[str, list[float]]:
    """Returns the wall seconds of every work, `repeats` times after one warm-up each; done: gets 1 after each run.

    The works take turns: a machine whose speed drifts is unfair to none, and the ratio of two is taken turn by turn.
    """
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if torch.accelerator.is_available():  # A GPU returns before it has done its work.
                torch.accelerator.synchronize()
            if turn:
                taken[name].append(time.perf_counter() - start)
            if done is not None:
                done(1)
    return taken


def matrix_product(dtype: torch.dtype, device: torch.device) -> tuple[Work, int]:
    """Returns a product of two square matrices and its FLOPs: nothing runs closer to the peak of a device."""
    side = PEAK_SIDE[device.type]
    a, b = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    return lambda: a @ b, 2 * side**3


def most_bytes(work: Work, device: torch.device) -> int:
    """Returns the peak memory of `work` in bytes, in tensors of torch's allocator, beyond what is there before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # Else the profiler talks on stderr.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    profiler: Any = record.profiler
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most

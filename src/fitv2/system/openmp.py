"""Makes OpenMP threads sleep instead of spin while anything else wants the processor cores.

An OpenMP thread that waits for the others spins for milliseconds before it sleeps. On an idle machine this is faster
by half than sleeping at once. On a busy one it keeps the very thread that the others wait for from running.

libgomp, the OpenMP library of torch on Linux, spins 100 times instead of 300 000 while it has more threads than there
are cores (its manual, GOMP_SPINCOUNT). While threads of this process wait for a core, `ThreadWatch` therefore holds
spare OpenMP threads, asleep. Each operation keeps its number of threads, so that its result stays the same, bit for
bit. `benchmarks/waiting.py` measures it.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from pathlib import Path

# The user's own choice, if any of these is set.
SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
THREADS = Path("/proc/self/task")
INTERVAL = 0.25
# The fraction of time spent waiting: below 0.1 for a training alone on two cores, 0.4 to 0.8 beside a busy loop.
BUSY = 0.2


def share_cores() -> None:
    """Starts one `ThreadWatch` for this process, unless the user has chosen how threads wait.

    Where Linux does not tell how long threads wait for a core, they sleep at once; this has no effect after torch has
    been imported. On other systems torch has another OpenMP library, which is left alone.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in SETTINGS):
        return
    if waited():
        watch = ThreadWatch()
        watch.start()
        atexit.register(watch.end)
    else:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def waited() -> dict[str, float]:
    """Returns the seconds that each thread of this process was ready to run without a core; empty where unknown."""
    seconds = {}
    for thread in THREADS.glob("*/schedstat"):
        try:
            seconds[thread.parent.name] = int(thread.read_text().split()[1]) / 1e9
        except (OSError, ValueError, IndexError):  # The thread has ended, or the system does not count.
            continue
    return seconds


def torch_is_loaded() -> bool:
    """Whether torch is imported completely: another thread may still be in the middle of its import."""
    torch = sys.modules.get("torch")
    return torch is not None and not getattr(torch.__spec__, "_initializing", False)


class ThreadWatch(threading.Thread):
    """Holds spare OpenMP threads for as long as some thread waits for a core for a fifth of the time."""

    def __init__(self):
        super().__init__(name="fitv2-thread-watch", daemon=True)
        self.ended = threading.Event()
        self.spare: SpareThreads | None = None

    def run(self) -> None:
        before, start = waited(), time.perf_counter()
        while not self.ended.wait(INTERVAL):
            now, end = waited(), time.perf_counter()
            longest = max((now[name] - before[name] for name in now.keys() & before.keys()), default=0)
            self.adapt(longest / (end - start))
            before, start = now, end
        self.adapt(0)

    def adapt(self, share: float) -> None:
        """share: The fraction of the time that the thread which waited longest was ready to run without a core."""
        if share < BUSY and self.spare:
            self.spare.release()
            self.spare = None
        elif share >= BUSY and not self.spare and torch_is_loaded():
            self.spare = SpareThreads()

    def end(self) -> None:
        """A thread that is inside torch at the end of the process crashes it."""
        self.ended.set()
        self.join()


class SpareThreads:
    """OpenMP threads without work, as many as libgomp needs to have more threads than there are cores."""

    def __init__(self):
        import torch

        threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
        # Each team adds all its threads but the one that asks for it. A single thread waits for no other.
        teams = max(0, cores - threads) // (threads - 1) + 1 if threads > 1 else 0
        self.released = threading.Event()
        name = "fitv2-spare-threads"
        self.holders = [threading.Thread(target=self.hold, name=name, daemon=True) for _ in range(teams)]
        for holder in self.holders:
            holder.start()

    def hold(self) -> None:
        import torch

        torch.ones(1 << 20).neg_()  # Large enough for all threads. They stay until this Python thread ends.
        self.released.wait()

    def release(self) -> None:
        self.released.set()
        for holder in self.holders:
            holder.join()

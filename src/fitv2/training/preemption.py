"""Preemption: a scheduler that needs the machine sends SIGTERM some time before it kills."""

from __future__ import annotations

import signal
import threading

# The exit code of a process that ended because it was asked to: 128 + 15, as shells and schedulers know it.
STOPPED = 128 + signal.SIGTERM


class Termination:
    """Notes SIGTERM within a with block instead of dying of it.

    Only a program's main thread may catch signals; in another one the block changes nothing.
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGTERM, self.note)
        return self

    def __exit__(self, *error) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.before)

    def note(self, number, frame) -> None:
        self.asked = True

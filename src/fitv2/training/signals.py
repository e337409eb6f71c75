"""Requests to stop: Ctrl-C, and the SIGTERM that a scheduler sends some time before it kills a process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised like Ctrl-C."""


def signal_of(interruption: KeyboardInterrupt) -> signal.Signals:
    """Returns the signal that caused an interruption."""
    return signal.SIGTERM if isinstance(interruption, Terminated) else signal.SIGINT


class SignalHandler:
    """Context manager that notes the first signal in `asked` instead of letting it end the process.

    Only a program's main thread may catch signals; in another one this changes nothing. A signal that the program
    ignores stays ignored. The first Ctrl-C prints the message `told`; the next one kills the process at once.
    """

    def __init__(self, *signals: signal.Signals, told: str = "") -> None:
        self.signals, self.told = signals, told
        self.asked: signal.Signals | None = None
        self.before: dict = {}

    def __enter__(self) -> SignalHandler:
        if threading.current_thread() is threading.main_thread():
            caught = [number for number in self.signals if signal.getsignal(number) != signal.SIG_IGN]
            self.before = {number: signal.signal(number, self.note) for number in caught}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def note(self, number: int, frame: object) -> None:
        if self.asked is None:
            self.asked = signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            if self.told:  # Not print: a signal may come in the middle of another print.
                os.write(2, f"\n{self.told}\n".encode(errors="replace"))


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Raises SIGTERM as `Terminated` within a with block, so that running code can clean up as after Ctrl-C."""

    def interrupt(number: int, frame: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) == signal.SIG_IGN:
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

"""Progress for people: bars on a terminal, elsewhere a line now and then; and the last words of trainings."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..messages import counted

if TYPE_CHECKING:
    from pathlib import Path

    from ..training.progress import Progress as RunProgress

SECONDS_BETWEEN_LINES = 20


@contextmanager
def image_progress(what: str, total: int, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar of images on stderr, if shown; the value takes the number of images just finished."""
    console = Console(stderr=True)
    if not (shown and console.is_terminal):
        yield count_printer(what, total) if shown else lambda count: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


def count_printer(what: str, total: int) -> Callable[[int], None]:
    """Prints a line every 20 seconds; none of what is finished sooner."""
    start, done = time.monotonic(), 0
    printed = start

    def show(count: int) -> None:
        nonlocal done, printed
        done += count
        now = time.monotonic()
        if now - printed < SECONDS_BETWEEN_LINES or not 0 < done < total:
            return
        printed, left = now, (now - start) / done * (total - done) / 60
        print(f"{what}: {done:,} of {total:,}, {left:.1f} min left", file=sys.stderr, flush=True)

    return show


@contextmanager
def training_progress(total: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Loss, tokens a second and time left; the value takes the figures of each step."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield line_printer(total)
        return
    columns = TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}")
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task, held_out = bar.add_task("starting", total=total), ""

        def show(figures: dict[str, Any]) -> None:
            nonlocal held_out
            held_out = measured_now(figures) or held_out
            bar.update(task, completed=figures["step"], description=speed_of(figures, held_out))

        yield show


def line_printer(total: int) -> Callable[[dict[str, Any]], None]:
    """Prints a line every 20 seconds, and one at the end."""
    first, start, printed, held_out = 0, 0.0, 0.0, ""

    def show(figures: dict[str, Any]) -> None:
        nonlocal first, start, printed, held_out
        held_out = measured_now(figures) or held_out
        now, step = time.monotonic(), figures["step"]
        first, start = (first, start) if first else (step, now)
        if now - printed < SECONDS_BETWEEN_LINES and step < total:
            return
        printed = now
        left = f"{(now - start) / (step - first) * (total - step) / 60:.1f} min left" if step > first else "starting"
        print(f"step {step}/{total}  {speed_of(figures, held_out)}  {left}", file=sys.stderr, flush=True)

    return show


def speed_of(figures: dict[str, Any], held_out: str) -> str:
    """The part of a progress line about a step: its loss, what was measured last, and its tokens a second."""
    return f"loss {figures['loss']:.4f}{held_out}  {figures['tokens_per_second']:,.0f} tokens/s"


def measured_now(figures: dict[str, Any]) -> str:
    """The part of a progress line about held-out images and distances; empty for a step that did not measure them."""
    told = {"holdout_loss": "held out {:.4f}", "fd": "FD {:.3g}"}
    return "".join(f", {text.format(figures[name])}" for name, text in told.items() if name in figures)


@contextmanager
def stopped_before_the_first_step(shown: bool = True) -> Iterator[None]:
    """Ends the program with a sentence, if shown, and 128 + the signal where Ctrl-C or SIGTERM interrupts its body."""
    from ..training.signals import NAMES, signal_of, sigterm_interrupts

    try:
        with sigterm_interrupts():
            yield
    except KeyboardInterrupt as interruption:
        number = signal_of(interruption)
        if shown:
            name = NAMES[number]
            print(f"stopped by {name} before the first step: nothing is lost, and the same command starts again")
        raise typer.Exit(128 + number) from None


def said_at_end(progress: RunProgress, begun: tuple[Path, dict[str, Any]] | None, how: str) -> tuple[str, bool]:
    """Returns what is said at the end of a training, and whether it trained to its last step.

    begun: the checkpoint with which it began, if any. how: how a stopped training continues.
    """
    from ..training.signals import NAMES

    steps = counted(progress.done, "step")
    if progress.stopped_by is not None:
        return f"stopped by {NAMES[progress.stopped_by]} at step {progress.done}, which is saved; {how}", False
    if begun is not None and begun[1]["step"] == progress.done:
        return f"nothing to do: all {steps} are trained; --set training.steps=... raises them", False
    unread = progress.images_read.skipped
    lost = f", {counted(unread, 'image')} could not be read" if unread else ""
    skipped = f"{progress.gradients.skipped} skipped as not finite{lost}"
    return f"trained {steps} in {progress.seconds / 60:.1f} min; {skipped}.", True

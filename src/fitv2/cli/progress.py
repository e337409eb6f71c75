"""Progress for people: bars on a terminal, and elsewhere a line now and then from trainings and studies."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 20
SECONDS_BETWEEN_LINES_OF_A_RUN = 120
ENDS = ("done", "failed")


@contextmanager
def image_progress(what: str, total: int, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar of images on stderr, if shown and on a terminal; the value takes the number of images just finished."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    # Elsewhere than on a terminal it would leave an empty line.
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def training_progress(total: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Loss, tokens a second and time left; the value takes the figures of each step."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _line_printer(total)
        return
    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:,.0f} tokens/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total, loss=float("nan"), rate=0.0)
        yield lambda f: bar.update(task, completed=f["step"], loss=f["loss"], rate=f["tokens_per_second"])


def _line_printer(total: int) -> Callable[[dict[str, Any]], None]:
    printed_at, first = [0.0], []

    def show(figures: dict[str, Any]) -> None:
        now = time.monotonic()
        first or first.append((figures["step"], now))
        if now - printed_at[0] < SECONDS_BETWEEN_LINES and figures["step"] < total:
            return
        printed_at[0] = now
        steps = figures["step"] - first[0][0]
        left = f"{(now - first[0][1]) / steps * (total - figures['step']) / 60:.1f} min left" if steps else "starting"
        loss, rate = figures["loss"], figures["tokens_per_second"]
        print(
            f"step {figures['step']}/{total}  loss {loss:.4f}  {rate:,.0f} tokens/s  {left}",
            file=sys.stderr,
            flush=True,
        )

    return show


@contextmanager
def study_progress(runs: int) -> Iterator[Callable[[str, str, int, int], None]]:
    """A line for each run under way, and one for all; the value takes a run, what it does, how much of it is done and
    of how much. A run has ended when it says "done" or "failed".
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _run_printer(runs)
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as bar:
        everything, lines = bar.add_task("all runs", total=runs), {}

        def show(run: str, what: str, done: int, total: int) -> None:
            before, line = lines.pop(run, ("", None))
            if what in ENDS:
                bar.console.print(f"{run}: {what}", markup=False, highlight=False)
                bar.advance(everything)
            if what != before and line is not None:
                bar.remove_task(line)
            if what not in ENDS:
                line = bar.add_task(f"{run}: {what}", total=total) if what != before else line
                bar.update(line, completed=done)
                lines[run] = what, line

        yield show


def _run_printer(runs: int) -> Callable[[str, str, int, int], None]:
    printed: dict[str, tuple[str, float]] = {}
    ended = [0]

    def show(run: str, what: str, done: int, total: int) -> None:
        before, at = printed.get(run, ("", 0.0))
        if what == before and time.monotonic() - at < SECONDS_BETWEEN_LINES_OF_A_RUN:
            return
        printed[run] = what, time.monotonic()
        ended[0] += what in ENDS
        progress = f"{ended[0]} of {runs} runs" if what in ENDS else f"{done}/{total}"
        print(f"{run}: {what}, {progress}", file=sys.stderr, flush=True)

    return show

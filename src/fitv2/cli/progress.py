"""Progress for people: bars on a terminal, and elsewhere a line now and then from trainings."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 20


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

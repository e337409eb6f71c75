"""Text, tables and JSON on stdout."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def show(report: Any, lines: Iterable[str], as_json: bool) -> None:
    """Prints a report: as JSON, or as lines for people."""
    for line in [json.dumps(report)] if as_json else lines:
        print(line)


def show_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    title: str | None = None,
    words: Collection[str] = (),
    width: int = 0,
) -> None:
    """Prints a table: the columns `words` at the left, numbers at the right, and at least `width` characters wide."""
    console = Console(markup=False, emoji=False, highlight=False)  # The names of models and files are no markup.
    console.width = max(console.width, width)
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    for column in columns:
        table.add_column(column, overflow="fold", justify="left" if column in words else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)

"""Plots as PNG files: panels on one page, drawn by matplotlib without a window and without its global state."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from .system.atomic import write_file

# What draws into its axes.
Panel = Callable[[Axes], None]
BLUE, ORANGE, GREY = "#3b6ea5", "#d97b29", "#888888"
PANEL_INCHES = (4.6, 3.0)
DOTS_PER_INCH = 110
COLUMNS = 2


def write_page(path: Path, panels: Sequence[Panel]) -> None:
    """Writes all panels as one PNG, two in a row, in one atomic step. Raises OSError if it cannot be written."""
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    size = (columns * PANEL_INCHES[0], rows * PANEL_INCHES[1])
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
    for number, draw in enumerate(panels, 1):
        draw(figure.add_subplot(rows, columns, number))
    with warnings.catch_warnings():
        # Names may have letters that the font has not; they become boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        write_file(path, lambda draft: figure.savefig(draft, format="png"))


def plain_ticks(axis: Axis, base: int = 10) -> None:
    """Sets few ticks, as plain numbers, on a logarithmic axis: 1, 2, 5, 10, or powers of another base."""
    axis.set_major_locator(LogLocator(base, subs=(1, 2, 5) if base == 10 else (1,), numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))

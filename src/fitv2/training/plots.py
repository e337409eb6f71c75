"""Panels of runs: what their logs say over the steps and the images, every run in a colour of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..drawing import Panel, plain_ticks
from .holdout import BY_SIZE, BY_TIME, LOSS

# The lines of each run by its name: what `read_log` returns.
Logs = Mapping[str, Sequence[dict[str, Any]]]
# Points of a smoothed curve at most: each is the mean of the steps around it.
POINTS = 100
# Ratio of values up to which a logarithmic axis would have hardly a tick.
NARROW = 4
DASHES = ("-", "--", "-.", ":")


def panels(logs: Logs) -> list[Panel]:
    """One for each figure; those of held-out images only if a run has some."""
    drawn = [smoothed(logs, "loss", "training loss (smoothed)", images=images) for images in (False, True)]
    if any(LOSS in line for lines in logs.values() for line in lines):
        drawn += [measured(logs, (LOSS,), "held-out loss (averaged weights)", images) for images in (False, True)]
    by = {BY_TIME: "held-out loss by time (0: noise, 1: data)", BY_SIZE: "held-out loss by tokens per image"}
    for start, title in by.items():
        names = {name: None for lines in logs.values() for line in lines for name in line if name.startswith(start)}
        if names:
            drawn.append(measured(logs, list(names), title, by=start))
    of_samples = {"fd": "Frechet distance to real images", "kid": "kernel distance to real images"}
    for name, title in (of_samples | {"accuracy": "samples recognised as their class (fraction)"}).items():
        if any(name in line for lines in logs.values() for line in lines):
            # A kernel distance is around zero where there is no difference.
            drawn.append(measured(logs, (name,), title, logarithmic=name != "kid"))
    drawn.append(smoothed(logs, "grad_norm", "gradient norm (smoothed)"))
    drawn.append(smoothed(logs, "learning_rate", "learning rate", logarithmic=False))
    drawn.append(smoothed(logs, "tokens_per_second", "tokens per second (smoothed)", logarithmic=False))
    return drawn


def smoothed(logs: Logs, name: str, title: str, images: bool = False, logarithmic: bool = True) -> Panel:
    """A figure of every step, as means over stretches of equal length."""

    def draw(axes: Axes) -> None:
        for number, (run, lines) in enumerate(logs.items()):
            places, values = places_of(lines, images), values_of(lines, name)
            stretch = math.ceil(len(values) / POINTS)
            ends = range(0, len(values), stretch)
            means = [mean(values[i : i + stretch]) for i in ends]
            axes.plot([places[i : i + stretch].mean() for i in ends], means, color=f"C{number}", lw=1.2, label=run)
        finish(axes, title, images, logarithmic)

    return draw


def measured(
    logs: Logs, names: Sequence[str], title: str, images: bool = False, by: str = "", logarithmic: bool = True
) -> Panel:
    """Figures of some steps: of several names, each dashed in its own way."""

    def draw(axes: Axes) -> None:
        for number, (run, lines) in enumerate(logs.items()):
            places = places_of(lines, images)
            own = [name for name in names if any(name in line for line in lines)]
            for dash, name in enumerate(own):
                values = values_of(lines, name)
                there = np.isfinite(values)
                label = f"{run} {name.removeprefix(by)}" if by else run
                (line,) = axes.plot(places[there], values[there], color=f"C{number}", lw=1.2, label=label)
                line.set_linestyle(DASHES[dash % len(DASHES)])
                line.set_marker("" if by else ".")
        finish(axes, title, images, logarithmic)

    return draw


def places_of(lines: Sequence[dict[str, Any]], images: bool) -> np.ndarray:
    """Returns where the lines are on the horizontal axis: at which step, or after how many images."""
    if images:
        return np.cumsum([line.get("images", 0) for line in lines], dtype=float)
    return np.array([line["step"] for line in lines], float)


def values_of(lines: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    """Returns a figure of every line; NaN where it is missing or was not finite."""
    found = (line.get(name) for line in lines)
    return np.array([math.nan if value is None else value for value in found], float)


def mean(values: np.ndarray) -> float:
    """The mean of the finite values; NaN if there is none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def finish(axes: Axes, title: str, images: bool, logarithmic: bool) -> None:
    """Gives a panel its title, axes and grid; logarithmic: if all values are positive and far enough apart."""
    axes.set(title=title, xlabel="images" if images else "step")
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    finite = drawn[np.isfinite(drawn)]
    if logarithmic and len(finite) and 0 < NARROW * finite.min() < finite.max():
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)
    axes.grid(alpha=0.3)
    if axes.lines:
        for text in axes.legend(fontsize=6).get_texts():
            text.set_parse_math(False)  # A folder's name is no formula.

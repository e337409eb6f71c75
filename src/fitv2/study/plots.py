"""Plots of a study, made from its records: curves over what a training takes, and the scores of the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes

from ..drawing import BLUE, Panel, plain_ticks, write_page
from .record import Record, Records
from .statistics import estimate
from .tables import TITLES, condition_names, over_seeds, steps_of

COSTS: dict[str, Callable] = {
    "steps": lambda point: point.step,
    "training operations in TFLOP": lambda point: point.flops / 1e12,
    "seconds of training steps": lambda point: point.seconds,
}
# Curves of so many variants have their legend in two columns.
MANY = 8


def draw(folder: Path, records: Records, point: str) -> list[str]:
    """Writes the pages into the folder; returns their names."""
    curves = [curve(records, point, cost, read) for cost, read in COSTS.items()] + [losses(records)]
    write_page(folder / "curves.png", curves)
    write_page(folder / "final.png", [bars(records, condition) for condition in condition_names(records)] or [nothing])
    return ["curves.png", "final.png"]


def nothing(axes: Axes) -> None:
    axes.set(title="no run came to its end")


def coloured(records: Records) -> list[tuple[str, list[Record], tuple]]:
    """The runs of each variant, and its colour on all panels."""
    colours = colormaps["tab10" if len(records) <= 10 else "tab20"].colors
    return [(v, list(runs.values()), colours[i % len(colours)]) for i, (v, runs) in enumerate(records.items()) if runs]


def curve(records: Records, point: str, title: str, cost: Callable) -> Panel:
    """The distance over a cost: the mean over the seeds, and a band from the lowest to the highest."""

    def panel(axes: Axes) -> None:
        for variant, runs, colour in coloured(records):
            at = [[p for record in runs for p in record.points if p.step == s] for s in steps_of(runs)]
            values = [[p.scores["distance"] for p in points if p.scores["distance"] is not None] for points in at]
            drawn = [(points, v) for points, v in zip(at, values, strict=True) if v]
            x = [estimate([float(cost(p)) for p in points]).mean for points, _ in drawn]
            axes.plot(x, [estimate(v).mean for _, v in drawn], "o-", markersize=2.5, lw=1, color=colour, label=variant)
            axes.fill_between(x, [min(v) for _, v in drawn], [max(v) for _, v in drawn], color=colour, alpha=0.15, lw=0)
        axes.set(title=f"{TITLES['distance']} ({point})", xlabel=title, yscale="log")
        plain_ticks(axes.yaxis)
        finish(axes, len(records))

    return panel


def losses(records: Records) -> Panel:
    """The loss of the first seed of each variant."""

    def panel(axes: Axes) -> None:
        for variant, runs, colour in coloured(records):
            axes.plot(*zip(*runs[0].loss, strict=True), lw=0.8, color=colour, label=variant)
        axes.set(title="loss of the first seed (not comparable between objectives)", xlabel="steps", yscale="log")
        axes.title.set_fontsize(9)
        plain_ticks(axes.yaxis)
        finish(axes, len(records))

    return panel


def bars(records: Records, condition: str) -> Panel:
    """The final distance of each variant, with the interval."""

    def panel(axes: Axes) -> None:
        found = {v: over_seeds(runs, lambda r: r.score(condition, "distance")) for v, runs in records.items()}
        shown = {v: figure for v, figure in found.items() if figure is not None}
        errors = [figure.half or 0.0 for figure in shown.values()]
        axes.barh(list(shown), [f.mean for f in shown.values()], xerr=errors, color=BLUE, ecolor="black", capsize=2)
        axes.invert_yaxis()
        axes.tick_params(axis="y", labelsize=6 if len(shown) > MANY else 8)
        axes.set(title=f"final, {condition}", xlabel=TITLES["distance"])
        axes.grid(alpha=0.3, axis="x")

    return panel


def finish(axes: Axes, variants: int) -> None:
    axes.grid(alpha=0.3)
    if axes.lines:
        many = variants > MANY
        for text in axes.legend(fontsize=5 if many else 7, ncols=2 if many else 1).get_texts():
            text.set_parse_math(False)  # A variant's name is no formula.

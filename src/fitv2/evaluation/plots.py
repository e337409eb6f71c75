"""Panels of an evaluation: each measure over the sizes, and precision over recall."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from ..drawing import BLUE, GREY, ORANGE, Panel
from .results import Result, titles

SHARES = ("precision", "recall", "density", "coverage", "accuracy")


def panels(results: Sequence[Result]) -> list[Panel]:
    """Of the measures that there are; dashed lines say what real pictures reach, both at equal numbers."""
    drawn = [bars(results, key, title) for key, title in titles(results).items()]
    if any(share in result.scores for result in results for share in SHARES):
        drawn.append(shares(results))
    return drawn


def bars(results: Sequence[Result], key: str, title: str) -> Panel:
    """A bar for each result, with its standard error, or its deviation over parts, where there is one."""
    shown = [result for result in results if key in result.scores]

    def draw(axes: Axes) -> None:
        places = range(len(shown))
        spread = [result.scores.get(f"{key}_error", result.scores.get(f"{key}_std", 0)) for result in shown]
        axes.bar(
            places,
            [comparable(result, key) for result in shown],
            yerr=spread if any(spread) else None,
            color=BLUE,
            ecolor=ORANGE,
            capsize=3,
        )
        real_lines(axes, shown, key, GREY)
        axes.set_title(title + dashed_words(shown, [key]))
        label(axes, shown)

    return draw


def shares(results: Sequence[Result]) -> Panel:
    """Lines of all that is a share, or like one."""

    def draw(axes: Axes) -> None:
        for number, name in enumerate(SHARES):
            points = [(place, comparable(r, name)) for place, r in enumerate(results) if name in r.scores]
            if points:
                axes.plot(*zip(*points, strict=True), "o-", markersize=4, color=f"C{number}", label=name)
            real_lines(axes, results, name, f"C{number}")
        axes.set_title("shares" + dashed_words(results, SHARES))
        axes.set_ylim(0, 1.3 * max(1, axes.dataLim.y1))  # Room for the legend.
        label(axes, results)
        axes.legend(fontsize=7, loc="upper center", ncols=3)

    return draw


def comparable(result: Result, key: str) -> float:
    """The figure at the numbers of the real images beside it, where that depends on numbers."""
    return result.equal.get(key, result.scores[key])


def real_lines(axes: Axes, results: Sequence[Result], key: str, colour: str) -> None:
    """What real pictures reach, at the place of each result that knows it."""
    for place, result in enumerate(results):
        if key in result.real:
            axes.hlines(result.real[key], place - 0.4, place + 0.4, color=colour, linestyle="--")
        if f"{key}_range" in result.real:
            axes.vlines(place + 0.4, *result.real[f"{key}_range"], color=colour)  # Of the draws.


def dashed_words(results: Sequence[Result], keys: Sequence[str]) -> str:
    """For the title of a panel that has such lines."""
    return " (dashed: real pictures)" if any(key in result.real for result in results for key in keys) else ""


def label(axes: Axes, results: Sequence[Result]) -> None:
    names = [result.name for result in results]
    axes.set_xticks(range(len(names)), names, rotation=30 if len(names) > 3 else 0, fontsize=7)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(axis="y", alpha=0.3)

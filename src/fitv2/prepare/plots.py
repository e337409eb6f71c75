"""Panels of an inspection: counts as bars, sizes as points."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from ..drawing import BLUE, GREY, ORANGE, Panel, plain_ticks

FEWEST_BARS, MOST_BARS = 6, 16
MOST_POINTS = 5000
LONGEST_NAME = 24


def bars(title: str, counts: Mapping[str, int]) -> Panel:
    """Draws a bar per entry, with its count; of more than fit, the first ones."""
    shown = list(counts.items())[:MOST_BARS]
    if len(counts) > MOST_BARS:
        shown[-1] = f"{len(counts) - MOST_BARS + 1} more", sum(list(counts.values())[MOST_BARS - 1 :])
    names = [name[:LONGEST_NAME].encode(errors="replace").decode() for name, _ in shown]

    def draw(axes: Axes) -> None:
        drawn = axes.barh(range(len(shown)), [count for _, count in shown], color=BLUE)
        axes.bar_label(drawn, padding=3, color=GREY, fontsize=8)
        axes.set_title(title)
        # A name is no formula, whatever dollars it has.
        axes.set_yticks(range(len(shown)), names, fontsize=8, parse_math=False)
        axes.set_xticks([])
        axes.margins(x=0.15)
        axes.set_xlim(left=0)
        # The first on top, and a single one as thin as one of several.
        axes.set_ylim(max(len(shown), FEWEST_BARS) - 0.5, -0.5)
        axes.spines[["top", "right", "bottom"]].set_visible(False)

    return draw


def points(title: str, groups: Mapping[str, np.ndarray]) -> Panel:
    """Draws (N, 2) heights and widths on logarithmic axes, width to the right and height upwards."""
    log = np.log2(np.concatenate([*groups.values()]).astype(float))
    ends = 2 ** np.floor(log.min()), 2 ** np.ceil(log.max() + 1e-9)

    def draw(axes: Axes) -> None:
        for (name, sizes), colour in zip(groups.items(), (GREY, ORANGE), strict=True):
            heights, widths = sizes[:: -(-len(sizes) // MOST_POINTS)].T
            axes.scatter(widths, heights, s=6, color=colour, label=name, clip_on=False)
        axes.set(title=title, xlabel="width", ylabel="height", xscale="log", yscale="log", xlim=ends, ylim=ends)
        for axis in (axes.xaxis, axes.yaxis):
            plain_ticks(axis, base=2)
        axes.set_aspect("equal")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)

    return draw

"""The plots of studies: a forest of claims, and curves over the training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..atomic import write_file
from ..drawing import BLUE, DOTS_PER_INCH, GREY, ORANGE, plain_ticks
from .claims import Faster
from .results import CURVE, TRAINING
from .verdicts import EQUIVALENT, HOLDS, REFUTED, Figures, Finding

COLOURS = {HOLDS: BLUE, REFUTED: ORANGE, EQUIVALENT: "black"}
LINES = (BLUE, ORANGE, "#4d9a5b", "#8b5fa8", "#b5473c", "black")
# Of a score, in percent, where the forest ends: an interval may be far wider.
WIDEST = 400.0


def draw_forest(path: Path, groups: dict[str, Sequence[Finding]]) -> None:
    """Every claim with an interval: the change of the score, to the left in favour of the claim; by study."""
    rows = [(name, f) for name, found in groups.items() for f in found if f.contrast is not None]
    figure = Figure(figsize=(9.5, 1.2 + 0.3 * len(rows)), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    for height, (_, finding) in enumerate(rows):
        low, mean, high = (
            np.clip(100 * np.expm1(np.clip(x, -20, 20)), -100, WIDEST)
            for x in (finding.contrast.interval[0], finding.contrast.value, finding.contrast.interval[1])
        )
        colour = COLOURS.get(finding.verdict, GREY)
        axes.plot([low, high], [height, height], color=colour, lw=1.5)
        axes.plot(mean, height, "o", color=colour, markersize=4)
    axes.axvline(0, color="black", lw=0.8)
    several = len(groups) > 1
    labels = [f"{name}: {of(f)}" if several else of(f) for name, f in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=7, parse_math=False)
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=20)
    axes.set_xticks(
        [-90, -50, -20, -10, 0, 10, 20, 50, 100, 400], ["-90", "-50", "-20", "-10", "0", "10", "20", "50", "100", "400"]
    )
    axes.set_xlabel("change of the score in %, 95 % interval; left: in favour of the claim", fontsize=8)
    axes.set_title("blue: holds · orange: refuted · black: equivalent · grey: open", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(alpha=0.3, axis="x")
    _save(path, figure)


def of(finding: Finding) -> str:
    """A short name of what is compared."""
    measure = finding.claim.measure
    sooner = (
        f" at 1/{measure.at_least:g} of the {measure.cost.replace('_', ' ')}s" if isinstance(measure, Faster) else ""
    )
    condition = getattr(measure, "condition", None)
    return f"{measure.of}{sooner} against {' and '.join(measure.others)}" + (f", {condition}" if condition else "")


def draw_curves(path: Path, figures: Figures, variants: Sequence[str]) -> bool:
    """The Frechet distance over steps and over operations: the mean of the logarithm over the seeds, and its range.

    Returns whether there is anything to draw.
    """
    frame = figures.frame[(figures.frame["condition"] == CURVE) & (figures.frame["metric"] == "fd")]
    frame = frame[frame["variant"].isin(list(variants))].dropna(subset="value")
    if frame.groupby("variant")["step"].nunique().max() < 3 or frame.empty:
        return False
    taken = figures.frame[(figures.frame["condition"] == TRAINING) & (figures.frame["metric"] == "operations")]
    costs = taken.groupby(["variant", "step"])["value"].mean()
    figure = Figure(figsize=(10, 4), dpi=DOTS_PER_INCH, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for number, variant in enumerate(v for v in variants if v in set(frame["variant"])):
        own = frame[frame["variant"] == variant].groupby("step")["value"]
        mean, low, high = np.exp(own.agg(lambda x: np.log(x).mean())), own.min(), own.max()
        operations = [costs.get((variant, step), np.nan) / 1e12 for step in mean.index]
        for axes, x in ((left, mean.index), (right, operations)):
            axes.plot(x, mean, "o-", color=LINES[number], markersize=3, lw=1.2)
            axes.fill_between(x, low, high, color=LINES[number], alpha=0.15, lw=0)
        # The label stands at the end of its line.
        right.annotate(
            f" {variant}", (operations[-1], mean.iloc[-1]), color=LINES[number], fontsize=8, parse_math=False
        )
    _label(left, "training steps")
    left.set_ylabel("Frechet distance; band: range over the seeds", fontsize=8)
    _label(right, "training operations in TFLOP")
    right.margins(x=0.2)
    _save(path, figure)
    return True


def _label(axes: Axes, cost: str) -> None:
    axes.set_yscale("log")
    plain_ticks(axes.yaxis)
    axes.set_xlabel(cost, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)


def _save(path: Path, figure: Figure) -> None:
    write_file(path, lambda draft: figure.savefig(draft, format="png"))

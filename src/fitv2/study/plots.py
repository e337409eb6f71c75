"""The plots of studies: a forest of claims, and curves over the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..drawing import BLUE, DOTS_PER_INCH, GREY, ORANGE, plain_ticks
from ..system.atomic import write_file
from .definition import Faster
from .results import CURVE, TRAINING
from .verdicts import EQUIVALENT, HOLDS, REFUTED, Figures, Finding

COLOURS = {HOLDS: BLUE, REFUTED: ORANGE, EQUIVALENT: "black"}
LINES = (BLUE, ORANGE, "#4d9a5b", "#8b5fa8", "#b5473c", "black")
# Ratios of scores at which the forest ends: an interval may be far wider.
ENDS, TICKS = (0.1, 5.0), {0.1: "-90", 0.2: "-80", 0.5: "-50", 0.8: "-20", 1: "0", 1.25: "+25", 2: "+100", 5: "+400"}


def draw_forest(path: Path, groups: Mapping[str, Sequence[Finding]]) -> bool:
    """Every claim with an interval: the change of the score, to the left in favour of the claim; by study.

    Returns whether there is anything to draw.
    """
    rows = [(name, f, f.contrast) for name, found in groups.items() for f in found if f.contrast is not None]
    if not rows:
        return False
    figure = Figure(figsize=(9.0, 1.3 + 0.26 * len(rows)), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    for height, (_, finding, contrast) in enumerate(rows):
        ends = (*contrast.interval, contrast.value)
        low, high, mean = np.clip(np.exp(np.clip(ends, -20, 20)), *ENDS)
        colour = COLOURS.get(finding.verdict, GREY)
        axes.plot([low, high], [height, height], color=colour, lw=1.5)
        marker = {ENDS[0]: "<", ENDS[1]: ">"}.get(float(mean), "o")  # An arrow: the change is beyond the plot.
        axes.plot(mean, height, marker, color=colour, markersize=4)
    axes.axvline(1, color="black", lw=0.8)
    labels = [f"{name}: {compared(f)}" if len(groups) > 1 else compared(f) for name, f, _ in rows]
    axes.set_yticks(range(len(rows)), labels, parse_math=False)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xticks([*TICKS], [*TICKS.values()])
    axes.minorticks_off()
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3, axis="x")
    figure.suptitle(
        "change of the score in %, with the 95 % interval of each claim alone; left of 0: in favour of the claim",
        fontsize=8,
    )
    figure.supxlabel("blue: holds · orange: refuted · black: equivalent · grey: open", fontsize=8)
    write_file(path, lambda draft: figure.savefig(draft, format="png"))
    return True


def compared(finding: Finding) -> str:
    """A short name of what is compared."""
    measure = finding.claim.measure
    others = measure.others[0] if len(measure.others) == 1 else f"each of {len(measure.others)} others"
    if isinstance(measure, Faster):
        return f"{measure.of} at 1/{measure.at_least:g} of the {measure.unit} against {others}"
    condition = getattr(measure, "condition", None)
    return f"{measure.of} against {others}" + (f", {condition}" if condition else "")


def draw_curves(path: Path, figures: Figures, variants: Sequence[str]) -> bool:
    """The Frechet distance over steps and over FLOPs: the mean of the logarithm over the seeds, and its range.

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
    for colour, variant in zip(LINES, (v for v in variants if v in set(frame["variant"])), strict=False):
        own = frame[frame["variant"] == variant].groupby("step")["value"]
        mean, low, high = own.agg(lambda x: np.exp(np.log(x).mean())), own.min(), own.max()
        flops = [costs.get((variant, step), np.nan) / 1e12 for step in mean.index]
        for axes, x in ((left, mean.index), (right, flops)):
            axes.plot(x, mean, "o-", color=colour, markersize=3, lw=1.2)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        # The label stands at the end of its line.
        right.annotate(f" {variant}", (flops[-1], mean.iloc[-1]), color=colour, fontsize=8, parse_math=False)
    for axes, cost in ((left, "training steps"), (right, "training cost in TFLOP")):
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)
        axes.set_xlabel(cost, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    left.set_ylabel("Frechet distance; band: range over the seeds", fontsize=8)
    right.margins(x=0.2)
    write_file(path, lambda draft: figure.savefig(draft, format="png"))
    return True

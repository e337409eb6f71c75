"""One image per part, drawn from what is stored."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from results import MeasuredPart, Measurement, Results

BLUE, GREY = "#3b6ea5", "#999999"
UNITS = {"images": "images a second", "tokens": "tokens a second", "flops": "operations a second"}


def save_plots(results: Results, folder: Path) -> None:
    """Draws PART.png for every part."""
    for part in results.parts:
        DRAWN.get(part.name, draw_bars)(part).savefig(folder / f"{part.name}.png", dpi=110)


def draw_bars(part: MeasuredPart) -> Figure:
    """A bar per contender: its rate with the ratio behind it, and its memory."""
    figure = Figure(figsize=(11, 1.6 + 0.4 * len(part.measurements)), layout="constrained")
    speed, memory = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    names = [m.name for m in part.measurements]
    colours = [GREY if m.name == part.base else BLUE for m in part.measurements]
    bars = speed.barh(
        names, [m.rate(part.unit) for m in part.measurements], xerr=spread(part), color=colours, capsize=3
    )
    speed.bar_label(bars, [f"{part.ratio(m):.2f}x" for m in part.measurements], padding=6)
    speed.set(title=part.title, xlabel=UNITS[part.unit])
    speed.margins(x=0.15)
    speed.invert_yaxis()
    memory.barh(names, [m.bytes / 2**30 for m in part.measurements], color=colours)
    memory.set(title="memory", xlabel="GiB beyond weights and optimiser")
    return figure


def spread(part: MeasuredPart) -> tuple[list[float], list[float]]:
    """From the median of each rate down to the least and up to the most."""
    rates = [m.rates(part.unit) for m in part.measurements]
    return [median(r) - min(r) for r in rates], [max(r) - median(r) for r in rates]


def draw_growth(part: MeasuredPart) -> Figure:
    """Seconds and memory of one image over its tokens, and what the formula makes of the shortest one's seconds."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    time, memory = figure.subplots(1, 2)
    first, tokens = part.measurements[0], [m.tokens for m in part.measurements]
    curve(time, tokens, part.measurements)
    expected = [median(first.seconds) * m.flops / first.flops for m in part.measurements]
    time.plot(tokens, expected, "--", color=GREY, label="by the formula, from the shortest")
    time.set(title=part.title, ylabel="seconds", yscale="log")
    time.legend()
    memory.plot(tokens, [m.bytes / 2**20 for m in part.measurements], "o-", color=BLUE)
    memory.set(title="memory", ylabel="MiB beyond the weights", yscale="log")
    for axes in (time, memory):
        axes.set_xlabel("tokens")
        doubling(axes, tokens)
    return figure


def curve(axes: Axes, x: list[int], measurements: list[Measurement]) -> None:
    """Median seconds, the band from least to most behind them."""
    axes.plot(x, [median(m.seconds) for m in measurements], "o-", color=BLUE, label="measured")
    least, most = [min(m.seconds) for m in measurements], [max(m.seconds) for m in measurements]
    axes.fill_between(x, least, most, color=BLUE, alpha=0.2, linewidth=0)


def draw_batch(part: MeasuredPart) -> Figure:
    """Tokens a second over the number of images in a pack."""
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes, counts = figure.subplots(), [m.images for m in part.measurements]
    axes.errorbar(counts, [m.rate("tokens") for m in part.measurements], spread(part), fmt="o-", color=BLUE, capsize=3)
    axes.set(title=part.title, xlabel="images in a pack", ylabel=UNITS["tokens"], ylim=(0, None))
    doubling(axes, counts)
    return figure


def doubling(axes: Axes, values: list[int]) -> None:
    """A logarithmic axis marked at the values themselves."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [str(value) for value in values])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


DRAWN = {"growth": draw_growth, "batch": draw_batch}

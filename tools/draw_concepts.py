"""Draws the figures of the documentation's concept pages from the package's own functions.

python tools/draw_concepts.py docs/images
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from fitv2 import TokenBatch
from fitv2.flow.path import TimeDensity, sample_times

# Token grids (rows, columns) of four images, and a color for each.
GRIDS = [(4, 9), (7, 3), (5, 5), (3, 4)]
COLORS = ["#4477aa", "#ee6677", "#228833", "#ccbb44"]
BLANK = "#dddddd"


def packing() -> Figure:
    """One row of tokens without gaps, against one row for each image, filled up to the longest."""
    batch = TokenBatch(torch.zeros(sum(h * w for h, w in GRIDS), 1), torch.tensor(GRIDS))
    lengths = batch.lengths
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 3.2), height_ratios=(1, 4), layout="constrained")
    draw_tokens(top, [list(zip(lengths, COLORS, strict=True))])
    top.set_title(f"packed: {sum(lengths)} tokens, all of them real", loc="left")
    longest = max(lengths)
    draw_tokens(bottom, [[(n, c), (longest - n, BLANK)] for n, c in zip(lengths, COLORS, strict=True)])
    spent = longest * len(lengths)
    bottom.set_title(f"padded: {spent} tokens, {1 - sum(lengths) / spent:.0%} of them padding (grey)", loc="left")
    return figure


def draw_tokens(axes: Axes, rows: list[list[tuple[int, str]]]) -> None:
    """Rows of tokens, each row as (number, color) runs; rows are drawn to the same scale."""
    for row, runs in enumerate(rows):
        tokens = [color for number, color in runs for _ in range(number)]
        for i, color in enumerate(tokens):
            axes.add_patch(Rectangle((i, -row), 0.9, 0.8, color=color))
    axes.set(xlim=(0, sum(h * w for h, w in GRIDS)), ylim=(1 - len(rows), 1))
    axes.axis("off")


def positions() -> Figure:
    """Each image has its own rows and columns, counted from its upper left corner."""
    figure, axes = plt.subplots(1, len(GRIDS), figsize=(9, 3.4), layout="constrained")
    for plot, (height, width), color in zip(axes, GRIDS, COLORS, strict=True):
        batch = TokenBatch(torch.zeros(height * width, 1), torch.tensor([[height, width]]))
        for row, column in batch.positions.tolist():
            plot.add_patch(Rectangle((column, -row), 0.94, 0.94, color=color, alpha=0.35 + 0.6 * row / height))
            plot.text(column + 0.47, 0.47 - row, f"{int(row)},{int(column)}", ha="center", va="center", fontsize=6)
        plot.set(xlim=(0, 9), ylim=(-6, 1), aspect="equal", title=f"{height} x {width} tokens")
        plot.axis("off")
    return figure


def modulation() -> Figure:
    """Where a block's six vectors come from, with AdaLN and with AdaLN-LoRA."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    draw_boxes(
        axes[0],
        "AdaLN (FiT): a full matrix per block",
        {"condition c": (0.5, 0.9), "block 1\nD x 6D": (0.2, 0.45), "block N\nD x 6D": (0.8, 0.45)},
        [(0, 1), (0, 2)],
    )
    draw_boxes(
        axes[1],
        "AdaLN-LoRA (FiTv2): a shared matrix, a thin pair per block",
        {
            "condition c": (0.5, 0.9),
            "shared\nD x 6D": (0.5, 0.5),
            "block 1\nD x r, r x 6D": (0.15, 0.1),
            "block N\nD x r, r x 6D": (0.85, 0.1),
        },
        [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)],
    )
    return figure


def draw_boxes(axes: Axes, title: str, boxes: dict[str, tuple[float, float]], arrows: list[tuple[int, int]]) -> None:
    places = list(boxes.values())
    for start, end in arrows:
        axes.annotate("", places[end], places[start], arrowprops={"arrowstyle": "->", "shrinkA": 18, "shrinkB": 18})
    for text, (x, y) in boxes.items():
        axes.add_patch(FancyBboxPatch((x - 0.13, y - 0.07), 0.26, 0.14, boxstyle="round,pad=0.02", fc="#eef3f8"))
        axes.text(x, y, text, ha="center", va="center", fontsize=8)
    axes.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
    axes.set_title(title, fontsize=9)
    axes.axis("off")


def times() -> Figure:
    """The straight path from noise to data, and how often training visits each time."""
    figure, (path, densities) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    rng = np.random.default_rng(0)
    for start, end in zip(rng.normal(size=12), rng.choice([-1.5, 1.5], 12) + 0.1 * rng.normal(size=12), strict=True):
        path.plot([0, 1], [start, end], color=COLORS[0], alpha=0.6)
    path.set(xlabel="t (0 is noise, 1 is data)", ylabel="one number of a token", title="x = (1 - t) noise + t data")
    generator = torch.Generator().manual_seed(0)
    for name, color in zip(("logit_normal", "uniform", "cosmap", "mode"), COLORS, strict=True):
        drawn = sample_times(200_000, generator, TimeDensity(kind=name))
        densities.hist(drawn.numpy(), bins=100, range=(0, 1), density=True, histtype="step", color=color, label=name)
    densities.set(xlabel="t", title="density of training times")
    densities.legend(frameon=False)
    return figure


FIGURES = {"packing": packing, "positions": positions, "modulation": modulation, "times": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder for the figures (SVG)")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    plt.rcParams["svg.hashsalt"] = "fitv2"  # The same bytes from run to run.
    for name, draw in FIGURES.items():
        draw().savefig(folder / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()

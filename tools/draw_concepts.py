"""Draws the figures of the documentation's concept pages from the package's own functions.

python tools/draw_concepts.py docs/images
"""

from __future__ import annotations

import argparse
import runpy
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from fitv2 import TokenBatch
from fitv2.data.preprocessing import variant_sizes
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


def pipeline() -> Figure:
    """From images of three sizes to one sequence and back."""
    figure, axes = plt.subplots(figsize=(9, 2.7), layout="constrained")
    sizes = GRIDS[1:]
    for row, ((height, width), color) in enumerate(zip(sizes, COLORS[1:], strict=False)):
        for shift in (0, 25):  # The images, and what the model makes.
            axes.add_patch(Rectangle((shift, -2.4 * row), 0.24 * width, 0.24 * height, color=color))
        for i in range(height * width):
            where = (3.2 + 0.22 * (i % width), -2.4 * row + 0.22 * (i // width))
            axes.add_patch(Rectangle(where, 0.18, 0.18, color=color))
    tokens = [color for (h, w), color in zip(sizes, COLORS[1:], strict=False) for _ in range(h * w)]
    for i, color in enumerate(tokens):
        axes.add_patch(Rectangle((7 + 0.16 * i, -1.9), 0.13, 0.5, color=color))
    end = 7 + 0.16 * len(tokens)
    axes.add_patch(FancyBboxPatch((end + 1.3, -2.6), 4.6, 1.9, boxstyle="round,pad=0.1", fc="#eef3f8"))
    axes.text(
        end + 3.6, -1.65, "transformer blocks\n(attention within\neach image)", ha="center", va="center", fontsize=8
    )
    for start, stop in ((2, 2.9), (5.5, 6.7), (end + 0.2, end + 1.1), (end + 6.1, 24.7)):
        axes.annotate("", (stop, -1.65), (start, -1.65), arrowprops={"arrowstyle": "->"})
    for x, text in ((0.6, "images"), (3.9, "patches"), ((7 + end) / 2, "one packed sequence"), (25.6, "images")):
        axes.text(x, 2.1, text, ha="center", fontsize=9)
    axes.set(xlim=(-0.3, 27), ylim=(-5.2, 2.6), aspect="equal")
    axes.axis("off")
    return figure


def preprocessing() -> Figure:
    """Algorithm 1: a wide photograph resized as a whole, and its centre square."""
    height, width, patch = 384, 640, 16
    sizes = variant_sizes(np.array([[height, width]]), 256, patch, "mixed")[0][0]
    y, x = np.mgrid[0:height:4, 0:width:4]
    image = np.hypot(x - 330, 1.4 * (y - 200)) % 90 + 0.12 * x
    square = image[:, (width - height) // 8 : (width + height) // 8]
    widths = (width, *(int(columns) for _, columns in sizes))
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.6), layout="constrained", width_ratios=widths)
    grids = (None, *((int(rows) // patch, int(columns) // patch) for rows, columns in sizes))
    for plot, shown, name, grid in zip(axes, (image, image, square), ("image", "resized", "crop"), grids, strict=True):
        plot.imshow(shown, cmap="viridis", interpolation="none", extent=(0, shown.shape[1], shown.shape[0], 0))
        title = f"{name}: {height} x {width} pixels"
        if grid is not None:
            title = f"{name}: {grid[0]} x {grid[1]} tokens"
            for count, length, line in (
                (grid[0], shown.shape[0], plot.axhline),
                (grid[1], shown.shape[1], plot.axvline),
            ):
                for i in range(1, count):
                    line(i * length / count, color="white", lw=0.4)
        plot.set_title(title, fontsize=9)
        plot.axis("off")
    return figure


def layers() -> Figure:
    """The rows of the package, read from the table that its test holds."""
    table = runpy.run_path(str(Path(__file__).parent.parent / "tests/test_layering.py"))["LAYERS"]
    figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
    for row, names in enumerate(table):
        shown = sorted(names - {"__init__"})
        text = "   ".join(shown) if len(shown) < 8 else textwrap.fill("  ".join(shown), 100)
        axes.add_patch(FancyBboxPatch((0, row), 10, 0.72, boxstyle="round,pad=0.03", fc="#eef3f8", ec="#4477aa"))
        axes.text(5, row + 0.36, text, ha="center", va="center", fontsize=8)
    axes.annotate("", (-0.4, 0.2), (-0.4, len(table) - 0.4), arrowprops={"arrowstyle": "->"})
    axes.text(-0.55, len(table) / 2, "may import", rotation=90, ha="right", va="center", fontsize=8)
    axes.set(xlim=(-1, 10.2), ylim=(-0.2, len(table)))
    axes.axis("off")
    return figure


FIGURES = {"pipeline": pipeline, "preprocessing": preprocessing, "layers": layers}
FIGURES |= {"packing": packing, "positions": positions, "modulation": modulation, "times": times}


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

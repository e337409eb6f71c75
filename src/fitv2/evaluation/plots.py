"""What an evaluation shows: panels of its figures, and a contact sheet of its samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from PIL import Image

from ..drawing import BLUE, GREY, ORANGE, Panel
from ..sheets import contact_sheet, save_sheet
from .results import Result, titles
from .samples import Samples

FRACTIONS = ("precision", "recall", "density", "coverage", "accuracy")
# Samples on a sheet, and the most pixels of a side.
SHOWN, LARGEST = 32, 256


def panels(results: Sequence[Result]) -> list[Panel]:
    """Returns a panel for each figure, and one for all fractions; dashed lines are real images, at equal numbers."""
    drawn = [bars(results, key, title) for key, title in titles(results).items()]
    return drawn + ([fractions(results)] if any(f in r.scores for r in results for f in FRACTIONS) else [])


def bars(results: Sequence[Result], key: str, title: str) -> Panel:
    """Draws a bar for each result, with its standard error, or its standard deviation over parts."""
    shown = [result for result in results if key in result.scores]

    def draw(axes: Axes) -> None:
        spread = [result.scores.get(f"{key}_error", result.scores.get(f"{key}_std", 0)) for result in shown]
        heights = [comparable(result, key) for result in shown]
        axes.bar(range(len(shown)), heights, yerr=spread if any(spread) else None, color=BLUE, ecolor=ORANGE, capsize=3)
        draw_real(axes, shown, key, GREY)
        finish(axes, shown, title, [key])

    return draw


def fractions(results: Sequence[Result]) -> Panel:
    """Draws a line for each figure that is a fraction, or like one."""

    def draw(axes: Axes) -> None:
        for number, name in enumerate(FRACTIONS):
            points = [(place, comparable(r, name)) for place, r in enumerate(results) if name in r.scores]
            if points:
                axes.plot(*zip(*points, strict=True), "o-", markersize=4, color=f"C{number}", label=name)
            draw_real(axes, results, name, f"C{number}")
        axes.set_ylim(0, 1.3 * max(1, axes.dataLim.y1))  # Room for the legend.
        finish(axes, results, "fractions", FRACTIONS)
        axes.legend(fontsize=7, loc="upper center", ncols=3)

    return draw


def comparable(result: Result, key: str) -> float:
    """Returns a figure at the numbers of the real images beside it, if it depends on numbers."""
    return result.equal.get(key, result.scores[key])


def draw_real(axes: Axes, results: Sequence[Result], key: str, colour: str) -> None:
    """Draws what real images score, and the range of the draws, at the place of each result that knows it."""
    for place, result in enumerate(results):
        if key in result.real:
            axes.hlines(result.real[key], place - 0.4, place + 0.4, color=colour, linestyle="--")
        if f"{key}_range" in result.real:
            axes.vlines(place + 0.4, *result.real[f"{key}_range"], color=colour)


def finish(axes: Axes, results: Sequence[Result], title: str, keys: Sequence[str]) -> None:
    """Adds the title and the names of the results."""
    real = any(key in result.real for result in results for key in keys)
    axes.set_title(title + (" (dashed: real images)" if real else ""))
    axes.set_xticks(range(len(results)), [r.name for r in results], rotation=30 if len(results) > 3 else 0, fontsize=7)
    axes.set_xlim(-0.6, len(results) - 0.4)
    axes.grid(axis="y", alpha=0.3)


def write_sheet(path: Path, samples: Samples) -> None:
    """Writes the first samples with their classes and sizes, large ones reduced."""
    images, chosen = samples.images, samples.chosen[:SHOWN].tolist()
    captions = []
    for index in chosen:
        name = images.class_names[images.labels[index]][:20] if images.class_names else ""
        captions.append("{} {}x{}".format(name, *images.sizes[index]).strip())
    save_sheet(contact_sheet(list(images.read(chosen, "RGB", small)), captions), path)


def small(image: Image.Image) -> Image.Image:
    """Returns a copy of at most 256 pixels a side."""
    image = image.copy()
    image.thumbnail((LARGEST, LARGEST))
    return image

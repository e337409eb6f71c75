"""What an evaluation shows: a plot of each figure, and a contact sheet of its samples."""

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
    """Returns a panel for each figure that one of the results has."""
    names = titles(results) | {name: name for name in FRACTIONS if any(name in result.scores for result in results)}
    return [bars(results, key, title) for key, title in names.items()]


def bars(results: Sequence[Result], key: str, title: str) -> Panel:
    """Draws a bar for each result, with its standard error, or its standard deviation over parts.

    Dashed lines are real images, at equal numbers if the figure depends on numbers, with the range of the draws.
    """
    shown = [result for result in results if key in result.scores]

    def draw(axes: Axes) -> None:
        spread = [result.scores.get(f"{key}_error", result.scores.get(f"{key}_std", 0)) for result in shown]
        heights = [result.equal.get(key, result.scores[key]) for result in shown]
        axes.bar(range(len(shown)), heights, yerr=spread if any(spread) else None, color=BLUE, ecolor=ORANGE, capsize=3)
        for place, real in enumerate(result.real for result in shown):
            if key in real:
                axes.hlines(real[key], place - 0.4, place + 0.4, color=GREY, linestyle="--")
            if f"{key}_range" in real:
                axes.vlines(place + 0.4, *real[f"{key}_range"], color=GREY)
        axes.set_title(title + (" (dashed: real images)" if any(key in result.real for result in shown) else ""))
        axes.set_xticks(range(len(shown)), [r.name for r in shown], rotation=30 if len(shown) > 3 else 0, fontsize=7)
        axes.set_xlim(-0.6, len(shown) - 0.4)
        axes.grid(axis="y", alpha=0.3)

    return draw


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

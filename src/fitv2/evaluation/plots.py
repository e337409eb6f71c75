"""Pages of an evaluation: a plot of each figure, and a contact sheet of the samples."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
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
    return [partial(bars, [r for r in results if key in r.scores], key, title) for key, title in names.items()]


def bars(results: Sequence[Result], key: str, title: str, axes: Axes) -> None:
    """Draws a bar for each result, with its standard error, or its standard deviation over parts.

    Dashed lines are real images, at equal numbers if the figure depends on numbers, with the range of the draws.
    """
    spread = [result.scores.get(f"{key}_error", result.scores.get(f"{key}_std", 0)) for result in results]
    heights = [result.equal.get(key, result.scores[key]) for result in results]
    axes.bar(range(len(results)), heights, yerr=spread if any(spread) else None, color=BLUE, ecolor=ORANGE, capsize=3)
    for place, real in enumerate(result.real for result in results):
        if key in real:
            axes.hlines(real[key], place - 0.4, place + 0.4, color=GREY, linestyle="--")
        if f"{key}_range" in real:
            axes.vlines(place + 0.4, *real[f"{key}_range"], color=GREY)
    axes.set_title(title + (" (dashed: real images)" if any(key in result.real for result in results) else ""))
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

    def reduced(image: Image.Image) -> Image.Image:
        image.thumbnail((LARGEST, LARGEST))
        return image

    save_sheet(contact_sheet(list(images.read(chosen, "RGB", reduced)), captions), path)

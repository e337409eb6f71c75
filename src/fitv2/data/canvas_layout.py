"""A canvas: one to four cut-outs on a background, side by side where it is wide and stacked where it is tall.

`lay_out` draws where they lie, `paint` makes the pixels, `describe` the caption. Sizes are (height, width) and boxes
are (left, top, width, height), in pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]
Arrangement = Literal["alone", "row", "column", "grid"]
# How much of its part of the canvas a cut-out takes, along the side that limits it.
SCALES = 0.5, 0.95
# Beyond this, the pixels of a cut-out would be seen.
MOST_ENLARGED = 1.5
# Parts of a row or column have lengths in these proportions.
UNEVEN = 0.75, 1.25
# Width / height (or its inverse) from which a canvas is wide (or tall); between them two by two may lie on it.
WIDE = 1.4
WHITE = (255, 255, 255)
COLOURS = {
    "light blue": (186, 219, 245),
    "blue": (84, 140, 214),
    "dark blue": (34, 48, 96),
    "light green": (198, 232, 190),
    "green": (92, 168, 96),
    "yellow": (250, 224, 120),
    "orange": (246, 178, 107),
    "pink": (248, 196, 212),
    "red": (214, 84, 84),
    "purple": (186, 160, 222),
    "beige": (238, 224, 200),
    "grey": (190, 190, 194),
}
PLURAL = re.compile(r"(?<![sui])s$")
VOWEL = re.compile(r"(?!uni|uku|eu|one)[aeiou]|hour", re.I)


@dataclass(frozen=True)
class Background:
    """Two colours, from the top to the bottom of the canvas, and their name; white has none."""

    top: tuple[int, int, int] = WHITE
    bottom: tuple[int, int, int] = WHITE
    name: str = ""


@dataclass(frozen=True)
class Scene:
    """What is on a canvas: cut-outs by their index, from left to right and from top to bottom, with their boxes."""

    size: tuple[int, int]
    cutouts: list[int]
    boxes: list[Box]
    arrangement: Arrangement
    background: Background
    mirrored: bool = False
    styled: bool = False


def draw_background(rng: np.random.Generator) -> Background:
    """Draws white (half of the time), a plain colour, or one that fades to white."""
    kind = rng.random()
    if kind < 0.5:
        return Background()
    name = list(COLOURS)[rng.integers(len(COLOURS))]
    red, green, blue = np.clip(COLOURS[name] + rng.integers(-10, 11, 3), 0, 255).tolist()
    faded = (red + 255) // 2, (green + 255) // 2, (blue + 255) // 2
    return Background((red, green, blue), (red, green, blue) if kind < 0.75 else faded, name)


def lay_out(
    size: tuple[int, int], cutouts: Sequence[tuple[int, int]], rng: np.random.Generator
) -> tuple[Arrangement, list[Box]]:
    """Draws the boxes of cut-outs of these sizes; they lie within the canvas and do not overlap."""
    (height, width), number = size, len(cutouts)
    arrangement = arrange(number, width / height, rng)
    rows = [number] if arrangement in ("alone", "row") else [number // 2] * 2 if arrangement == "grid" else [1] * number
    cells = [
        (left, top, across, down)
        for (top, down), columns in zip(cut(height, len(rows), rng), rows, strict=True)
        for left, across in cut(width, columns, rng)
    ]
    return arrangement, [place(cell, hw, rng) for cell, hw in zip(cells, cutouts, strict=True)]


def arrange(number: int, aspect: float, rng: np.random.Generator) -> Arrangement:
    """Draws how this number of cut-outs lies on a canvas of an aspect (width / height)."""
    if number == 1:
        return "alone"
    if aspect >= WIDE:
        return "row"
    if aspect <= 1 / WIDE:
        return "column"
    if number == 4:
        return "grid"
    return "row" if rng.random() < 0.5 else "column"


def cut(length: int, number: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Cuts a length into parts, (start, length) each, of random but not very different lengths."""
    parts = rng.uniform(*UNEVEN, number)
    edges = [0, *np.rint(length * parts.cumsum() / parts.sum()).astype(int).tolist()]
    return [(start, end - start) for start, end in pairwise(edges)]


def place(cell: Box, hw: tuple[int, int], rng: np.random.Generator) -> Box:
    """Draws the box of a cut-out of this size, of its own aspect, within a cell."""
    left, top, across, down = cell
    scale = min(min(down / hw[0], across / hw[1]) * rng.uniform(*SCALES), MOST_ENLARGED)
    height, width = max(round(hw[0] * scale), 1), max(round(hw[1] * scale), 1)
    return left + int(rng.integers(across - width + 1)), top + int(rng.integers(down - height + 1)), width, height


def fill(size: tuple[int, int], hw: tuple[int, int]) -> Box:
    """Returns the largest box of a cut-out of this size, of its own aspect, in the middle of a canvas."""
    scale = min(size[0] / hw[0], size[1] / hw[1])
    height, width = max(round(hw[0] * scale), 1), max(round(hw[1] * scale), 1)
    return (size[1] - width) // 2, (size[0] - height) // 2, width, height


def paint(scene: Scene, read: Callable[[int], Image.Image]) -> Image.Image:
    """Returns the canvas as RGB. read: returns a cut-out as RGBA by its index."""
    height, width = scene.size
    top, bottom = np.array(scene.background.top), np.array(scene.background.bottom)
    shade = np.linspace(top, bottom, height).round().astype(np.uint8)  # (height, 3)
    page = Image.fromarray(np.ascontiguousarray(np.broadcast_to(shade[:, None], (height, width, 3))))
    for index, (left, upper, across, down) in zip(scene.cutouts, scene.boxes, strict=True):
        cutout = read(index)
        if scene.mirrored:
            cutout = cutout.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        cutout = cutout.resize((across, down), Image.Resampling.BICUBIC)
        page.paste(cutout, (left, upper), cutout)
    return page


def describe(scene: Scene, names: Sequence[str], style: str) -> str:
    """Returns the caption: "a cat, a rocket and a tree in a row, flat style".

    names: of the cut-outs on the canvas, in their order.
    """
    things = [with_article(name) for name in names]
    half = len(things) // 2
    if scene.arrangement == "alone":
        text = things[0]
    elif scene.arrangement == "grid":
        text = f"{listing(things[:half])} above {listing(things[half:])}"
    elif len(things) == 2:
        text = (" to the left of " if scene.arrangement == "row" else " above ").join(things)
    else:
        text = f"{listing(things)} in a {scene.arrangement}"
    if scene.background.name:
        text += f" on {with_article(scene.background.name)} background"
    return f"{text}, {style} style" if style and scene.styled else text


def listing(things: Sequence[str]) -> str:
    """Returns "a cat, a rocket and a tree"."""
    return " and ".join([", ".join(things[:-1]), things[-1]] if len(things) > 1 else things)


def with_article(name: str) -> str:
    """Returns the name with "a" or "an"; a plural stays as it is, judged by the word before "of" or "with"."""
    if PLURAL.search(re.split(r" (?:of|with|in|on) ", name)[0]):
        return name
    return f"an {name}" if VOWEL.match(name) else f"a {name}"

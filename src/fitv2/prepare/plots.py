"""Figures of an inspection as one picture, drawn with what the package has anyway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PANEL = (460, 300)
MARGIN, LABELS, COLUMNS = 24, 150, 2
BLUE, ORANGE, GREY = "#3b6ea5", "#d97b29", "#888888"
MOST_BARS = 16
MOST_POINTS = 5000


def page(panels: Sequence[Image.Image]) -> Image.Image:
    """All panels on one white page, two in a row."""
    rows = -(-len(panels) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * PANEL[0], rows * PANEL[1]), "white")
    for number, panel in enumerate(panels):
        sheet.paste(panel, (number % COLUMNS * PANEL[0], number // COLUMNS * PANEL[1]))
    return sheet


def bars(title: str, counts: Mapping[str, int]) -> Image.Image:
    """A bar per entry, its count behind it; of more than fit, the first ones."""
    panel, draw, font = empty(title)
    shown = list(counts.items())[:MOST_BARS]
    if len(counts) > MOST_BARS:
        shown[-1] = f"{len(counts) - MOST_BARS + 1} more", sum(list(counts.values())[MOST_BARS - 1 :])
    height = (PANEL[1] - 2 * MARGIN) / max(len(shown), 1)
    longest = max([count for _, count in shown], default=0) or 1
    for number, (name, count) in enumerate(shown):
        top = 2 * MARGIN - 8 + number * height
        end = LABELS + (PANEL[0] - LABELS - 70) * count / longest
        draw.rectangle((LABELS, top, end, top + max(1, min(height - 3, 14))), fill=BLUE)
        draw.text((LABELS - 6, top), name[:24].encode(errors="replace").decode(), "black", font, "ra")
        draw.text((end + 5, top), str(count), GREY, font)
    return panel


def points(title: str, groups: Mapping[str, Sequence[tuple[int, int]]]) -> Image.Image:
    """(height, width) pairs on logarithmic axes, width to the right and height upwards."""
    panel, draw, font = empty(title)
    side = PANEL[1] - 3 * MARGIN
    log = np.log2(np.array([size for sizes in groups.values() for size in sizes], dtype=float))
    low, high = np.floor(log.min()), np.ceil(log.max() + 1e-9)
    corner = (2 * MARGIN, PANEL[1] - MARGIN)
    draw.rectangle((corner[0], corner[1] - side, corner[0] + side, corner[1]), outline=GREY)
    for power in range(int(low), int(high) + 1):
        at = side * (power - low) / max(high - low, 1)
        draw.text((corner[0] + at, corner[1] + 4), str(2**power), GREY, font, "ma")
        draw.text((corner[0] - 4, corner[1] - at), str(2**power), GREY, font, "rm")
    for (name, sizes), colour in zip(groups.items(), (GREY, ORANGE), strict=True):
        chosen = sizes[:: -(-len(sizes) // MOST_POINTS)]
        for height, width in (np.log2(np.array(chosen, dtype=float)) - low) * side / max(high - low, 1):
            x, y = corner[0] + width, corner[1] - height
            draw.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=colour)
        place = MARGIN * (2 if colour == GREY else 3)
        draw.text((corner[0] + side + 12, place), name, colour, font)
    return panel


def empty(title: str) -> tuple[Image.Image, ImageDraw.ImageDraw, ImageFont.FreeTypeFont]:
    panel = Image.new("RGB", PANEL, "white")
    draw = ImageDraw.Draw(panel)
    draw.text((MARGIN, 10), title, "black", ImageFont.load_default(14))
    return panel, draw, ImageFont.load_default(11)

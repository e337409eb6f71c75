"""Draws 24 canvases of the bundled drawings, with their captions, for the documentation.

python tools/draw_canvases.py docs/images/canvases.png
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from fitv2.build import build_dataset
from fitv2.images.sheets import to_image
from fitv2.settings.read import build_recipe

PATCH, TOKENS, NUMBER, COLUMNS = 16, 64, 24, 6
CELL, MARGIN, LINE = 170, 12, 12
FRAME = "#c8c8c8"


def cell(image: Image.Image, caption: str) -> Image.Image:
    """A canvas with a thin frame, and its caption in a few lines below."""
    lines = textwrap.wrap(caption, 29)
    page = Image.new("RGB", (CELL, image.height + 2 + LINE * len(lines) + 6), "white")
    left = (CELL - image.width) // 2
    draw = ImageDraw.Draw(page)
    draw.rectangle((left - 1, 0, left + image.width, image.height + 1), outline=FRAME)
    page.paste(image, (left, 1))
    for number, line in enumerate(lines):
        draw.text((CELL / 2, image.height + 6 + LINE * number), line, "#333333", ImageFont.load_default(10), "ma")
    return page


def main(out: Path) -> None:
    settings = {"source": "emoji", "max_tokens": TOKENS}
    recipe = build_recipe({"model": {"patch_size": PATCH}, "data": settings})
    data = build_dataset(recipe.data, PATCH)
    view = data.epoch(0, 0)
    # Of all three sets; the longest are left out, for the page's sake.
    fitting = [i for i in range(len(data)) if view.hw[i].max() <= CELL // PATCH]
    chosen = fitting[:: len(fitting) // NUMBER][:NUMBER]
    cells = [cell(to_image(view.load(i)), view.caption(i)) for i in chosen]
    rows = [cells[start : start + COLUMNS] for start in range(0, NUMBER, COLUMNS)]
    heights = [max(image.height for image in row) + MARGIN for row in rows]
    page = Image.new("RGB", (COLUMNS * (CELL + MARGIN) + MARGIN, sum(heights) + MARGIN), "white")
    for number, row in enumerate(rows):
        for column, image in enumerate(row):
            bottom = MARGIN + sum(heights[: number + 1]) - MARGIN
            page.paste(image, (MARGIN + column * (CELL + MARGIN), bottom - image.height))
    page.save(out, optimize=True)


main(Path(sys.argv[1]))

"""Images for people: pixels as 8-bit images, and contact sheets of images of mixed sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..finite import check_finite
from ..sample_list import CONTACT_SHEET
from ..system.atomic import write_file

MARGIN = 6
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
# The height of a line of a caption, and the most lines.
CAPTION = 13
MOST_LINES = 6


def to_image(pixels: Tensor) -> Image.Image:
    """Returns (1 or 3, h, w) in [-1, 1] as an 8-bit grey or RGB image of exactly w x h; values beyond are clipped.

    Raises NotFinite for NaN or infinity, which would become black.
    """
    check_finite(pixels, "an image")
    array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
    return Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))


def contact_sheet(
    images: Sequence[Image.Image], captions: Sequence[str], note: str | None = None, columns: int = 8
) -> Image.Image:
    """Returns all images on one white page, captions below, enlarged by one whole number to about 128 pixels at most.

    note: a line at the bottom.
    """
    zoom = max(1, 128 // max(max(image.size) for image in images))
    cell_w = max(max(image.width for image in images) * zoom, 96) + MARGIN
    rows = [range(i, min(i + columns, len(images))) for i in range(0, len(images), columns)]
    font = ImageFont.load_default(10)
    lines = [wrapped(caption, font, cell_w - MARGIN) for caption in captions]
    pictures = [max(images[i].height for i in row) * zoom for row in rows]
    heights = [
        picture + max(len(lines[i]) for i in row) * CAPTION + MARGIN
        for row, picture in zip(rows, pictures, strict=True)
    ]
    width = min(columns, len(images)) * cell_w + MARGIN
    foot = 0 if note is None else CAPTION + MARGIN
    page = Image.new("RGB", (width, sum(heights) + MARGIN + foot), "white")
    draw, top = ImageDraw.Draw(page), MARGIN
    for row, picture, height in zip(rows, pictures, heights, strict=True):
        for column, i in enumerate(row):
            big = images[i].resize((images[i].width * zoom, images[i].height * zoom), Image.Resampling.NEAREST)
            left = MARGIN + column * cell_w
            page.paste(big, (left + (cell_w - MARGIN - big.width) // 2, top + picture - big.height))
            for number, line in enumerate(lines[i], 1):
                place = left + (cell_w - MARGIN) / 2, top + picture + number * CAPTION
                draw.text(place, line, "black", font, "ms")
        top += height
    if note is not None:
        draw.text((MARGIN, top + CAPTION), note, "black", font, "ls")
    return page


def wrapped(caption: str, font: Font, width: int) -> list[str]:
    """Returns the lines of a caption within a width in pixels, but for single words; `MOST_LINES` at most."""
    lines = [""]
    for word in caption.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) <= MOST_LINES:
        return lines
    last = lines[MOST_LINES - 1]
    while last and font.getlength(last + "...") > width:
        last = last[:-1]
    return [*lines[: MOST_LINES - 1], last.rstrip(" .") + "..."]


def save_sheet(page: Image.Image, path: Path) -> None:
    """Writes a contact sheet as a PNG file whose metadata tell it from the samples."""
    about = PngInfo()
    about.add_text("Software", CONTACT_SHEET)
    write_file(path, lambda draft: page.save(draft, "PNG", pnginfo=about))

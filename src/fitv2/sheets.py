"""Images for people: pixels as 8-bit images, and contact sheets of images of mixed sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .atomic import write_file
from .finite import check_finite
from .sample_list import CONTACT_SHEET

MARGIN = 6
CAPTION = 13


def to_image(latent: Tensor) -> Image.Image:
    """Returns (1 or 3, h, w) in [-1, 1] as an 8-bit grey or RGB image of exactly w x h; values beyond are clipped.

    Raises NotFinite for NaN or infinity, which would become black.
    """
    check_finite(latent, "an image")
    pixels = ((latent.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def contact_sheet(
    images: Sequence[Image.Image], captions: Sequence[str], note: str | None = None, columns: int = 8
) -> Image.Image:
    """Returns all images on one white page, captions below, enlarged by one whole number to about 128 pixels at most.

    note: a line at the bottom.
    """
    zoom = max(1, 128 // max(max(image.size) for image in images))
    cell_w = max(max(image.width for image in images) * zoom, 96) + MARGIN
    rows = [range(i, min(i + columns, len(images))) for i in range(0, len(images), columns)]
    heights = [max(images[i].height for i in row) * zoom + CAPTION + MARGIN for row in rows]
    width = min(columns, len(images)) * cell_w + MARGIN
    foot = 0 if note is None else CAPTION + MARGIN
    page = Image.new("RGB", (width, sum(heights) + MARGIN + foot), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(10)
    top = MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, i in enumerate(row):
            big = images[i].resize((images[i].width * zoom, images[i].height * zoom), Image.Resampling.NEAREST)
            left = MARGIN + column * cell_w
            page.paste(big, (left + (cell_w - MARGIN - big.width) // 2, top + height - CAPTION - MARGIN - big.height))
            draw.text((left + (cell_w - MARGIN) / 2, top + height - MARGIN), captions[i], "black", font, "ms")
        top += height
    if note is not None:
        draw.text((MARGIN, top + CAPTION), note, "black", font, "ls")
    return page


def save_sheet(page: Image.Image, path: Path) -> None:
    """Writes a contact sheet as a PNG file whose metadata tell it from the samples."""
    about = PngInfo()
    about.add_text("Software", CONTACT_SHEET)
    write_file(path, lambda draft: page.save(draft, "PNG", pnginfo=about))

"""Draws what a training has learned by some steps: the lower left corners of its sheets, side by side.

fitv2 train --recipe fashion-tiny --out runs/tiny --set training.steps=500 --set log.sample_every=100
python tools/draw_progress.py runs/tiny docs/images/steps.png 100 500
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageOps

from fitv2.images.sheets import contact_sheet

# In pixels of a sheet: four columns, and the last four classes.
WIDTH, HEIGHT, GAP = 476, 530, 24


def corner(path: Path) -> Image.Image:
    with Image.open(path) as sheet:
        part = sheet.convert("L").crop((0, sheet.height - HEIGHT, WIDTH, sheet.height))
    return ImageOps.expand(part, (0, 0, GAP, 0), fill=255)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a training")
    parser.add_argument("out", type=Path, help="the PNG file to write")
    parser.add_argument("steps", type=int, nargs="+", help="steps that have a sheet")
    given = parser.parse_args()
    corners = [corner(given.run / f"samples/step-{step:08}.png") for step in given.steps]
    page = contact_sheet(corners, [f"step {step}" for step in given.steps])
    page.convert("L").quantize(32).save(given.out, optimize=True)


if __name__ == "__main__":
    main()

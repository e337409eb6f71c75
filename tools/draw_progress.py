"""Draws what a training has learned by some steps: the same part of its sheets, side by side.

fitv2 train --recipe fashion-tiny --out runs/tiny --set training.steps=500 --set log.sample_every=100
python tools/draw_progress.py runs/tiny docs/images/steps.png 100 500
python tools/draw_progress.py runs/stamps docs/images/stamps.png 1000 4000 --part 0 205 860 450
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageOps

from fitv2.images.sheets import contact_sheet

# In pixels of a sheet: four columns, and the last four classes.
WIDTH, HEIGHT, GAP = 476, 530, 24


def part_of(path: Path, part: tuple[int, int, int, int] | None) -> Image.Image:
    """Returns a part of a sheet (left, top, right, bottom); its lower left corner if none is given."""
    with Image.open(path) as sheet:
        box = part or (0, sheet.height - HEIGHT, WIDTH, sheet.height)
        return ImageOps.expand(sheet.convert("RGB").crop(box), (0, 0, GAP, 0), fill="white")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a training")
    parser.add_argument("out", type=Path, help="the PNG file to write")
    parser.add_argument("steps", type=int, nargs="+", help="steps that have a sheet")
    parser.add_argument("--part", type=int, nargs=4, help="of the sheets, in pixels: left, top, right, bottom")
    given = parser.parse_args()
    parts = [part_of(given.run / f"samples/step-{step:08}.png", given.part) for step in given.steps]
    page = contact_sheet(parts, [f"step {step}" for step in given.steps])
    page.quantize(128).save(given.out, optimize=True)


if __name__ == "__main__":
    main()

"""Samples for people, as a contact sheet, and for ADM's evaluator, as an archive."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..atomic import write_file
from ..sheets import contact_sheet
from .archives import write_pictures
from .run import Samples
from .sample_list import CONTACT_SHEET

SHOWN = 32
LARGEST = 256


def write_sheet(path: Path, samples: Samples) -> None:
    """The first pictures with their classes and sizes, large ones shrunk."""
    pictures, chosen = samples.pictures, samples.chosen[:SHOWN].tolist()
    captions = []
    for index in chosen:
        name = pictures.class_names[pictures.labels[index]][:20] if pictures.class_names else ""
        captions.append("{} {}x{}".format(name, *pictures.sizes[index]).strip())
    page = contact_sheet(list(pictures.read(chosen, "RGB", small)), captions)
    about = PngInfo()
    about.add_text("Software", CONTACT_SHEET)
    write_file(path, lambda draft: page.save(draft, "PNG", pnginfo=about))


def small(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.thumbnail((LARGEST, LARGEST))
    return image


def write_archive(path: Path, samples: Samples) -> None:
    """`arr_0`, in order, of samples of one size."""
    images = samples.pictures.read(samples.chosen.tolist(), "RGB", lambda image: image)
    write_pictures(path, images, len(samples.chosen), samples.size)

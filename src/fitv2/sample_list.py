"""The list of the images that `fitv2 sample` made in a folder, and the mark that tells contact sheets from images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from .errors import UserError

SAMPLES_LIST, SHEET, FORMAT = "samples.json", "sheet.png", 1
# The list while images are made.
DRAFT = ".samples.json.partial"
# The text chunk "Software" of every contact sheet.
CONTACT_SHEET = "fitv2 contact sheet"


class SampledImage(NamedTuple):
    """file: relative to the folder. label, name: of the class, None without classes. size: (height, width), pixels."""

    file: str
    label: int | None
    name: str | None
    size: tuple[int, int]


def read_list(path: Path) -> list[SampledImage]:
    """Returns the images of a samples.json. Raises UserError if `fitv2 sample` did not write it or it lists none."""
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise UserError(f"its format is {content['format']}, and this version reads {FORMAT}")
        images = []
        for image in content["images"]:
            name = None if image["class"] == "picture" else image["class"]  # Older versions wrote "picture" for None.
            height, width = map(int, image["size"])
            images.append(SampledImage(str(image["file"]), image["label"], name, (height, width)))
        if not images:
            raise UserError("it lists no image")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path} is no list of samples ({error}): make the samples again, or remove it") from None
    return images


def is_contact_sheet(content: bytes) -> bool:
    """Whether the content of a file is a contact sheet of fitv2."""
    return content.startswith(b"\x89PNG") and b"Software\0" + CONTACT_SHEET.encode() in content[:1024]

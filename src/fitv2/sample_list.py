"""What tells the images that `fitv2 sample` made from others in a folder: their list, and the mark of its sheets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .errors import UserError

SAMPLES_LIST, SHEET, FORMAT = "samples.json", "sheet.png", 1
# The list while images are made.
DRAFT = ".samples.json.partial"
# The text chunk "Software" of every contact sheet.
CONTACT_SHEET = "fitv2 contact sheet"
MOST_NAMED = 5


class SampledImage(NamedTuple):
    """file: relative to the folder. label, name: of the class, None without classes. size: (height, width), pixels."""

    file: str
    label: int | None
    name: str | None
    size: tuple[int, int]


def read_list(path: Path) -> list[SampledImage]:
    """Raises UserError for anything but what `fitv2 sample` wrote, or for no image."""
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise UserError(f"its format is {content['format']}, and this version reads {FORMAT}")
        images = [
            SampledImage(str(image["file"]), image["label"], class_of(image), tuple(map(int, image["size"])))
            for image in content["images"]
        ]
        if not images:
            raise UserError("it lists no image")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path} is no list of samples ({error}): make the samples again, or remove it") from None
    return images


def class_of(image: dict[str, Any]) -> str | None:
    """The name of its class; images of models without classes are called pictures."""
    return None if image["class"] == "picture" else image["class"]


def is_contact_sheet(content: bytes) -> bool:
    """Whether a file is a page of many images that fitv2 wrote."""
    return content.startswith(b"\x89PNG") and b"Software\0" + CONTACT_SHEET.encode() in content[:1024]


def shortened(names: Sequence[str]) -> str:
    """The first of many names."""
    return ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")

"""The folder of `fitv2 sample`: samples.json records the request and the files that were made for it.

While images are being made, a draft stands in for it. Either file tells the images of earlier calls from other files.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..sample_list import DRAFT, FORMAT, SAMPLES_LIST, SHEET


def free_folder() -> Path:
    """Returns the first of outputs, outputs-2, outputs-3, ... that is not there or is empty."""
    folders = (Path(f"outputs-{number}" if number > 1 else "outputs") for number in itertools.count(1))
    return next(f for f in folders if not f.exists() or (f.is_dir() and not any(f.iterdir())))


def begin(folder: Path, request: dict[str, Any], names: Sequence[str], overwrite: bool) -> None:
    """Prepares the folder for files of these names, without touching other files.

    The same request may be repeated. Raises UserError if the folder holds images of another request, or other files of
    these names, unless `overwrite` is set: it removes the images of the earlier request and replaces the other files.
    """
    from ..legacy import current_request

    earlier, known = read(folder), set()
    if earlier is not None:
        # Never a file outside the folder, whatever the list says.
        made = [name for name in (*(i["file"] for i in earlier["images"]), earlier["sheet"]) if Path(name).name == name]
        known = {*made, SAMPLES_LIST}
        # The same words in other numbers make other files.
        if current_request(earlier["request"]) != request or {*made} - {*names, SHEET, earlier["sheet"]}:
            if not overwrite and any((folder / name).exists() for name in made):
                raise UserError(
                    f"{folder} holds images of another request; choose another --out, or add --overwrite to remove them"
                )
            for name in made:
                (folder / name).unlink(missing_ok=True)
    foreign = [name for name in [*names, SHEET, SAMPLES_LIST] if name not in known and (folder / name).exists()]
    if foreign and not overwrite:
        raise UserError(
            f"{folder} holds {foreign[0]} already, which no request here has made; choose another --out, or add "
            "--overwrite to replace it"
        )
    write(folder / DRAFT, request, [{"file": name} for name in names])
    (folder / SAMPLES_LIST).unlink(missing_ok=True)


def finish(folder: Path, request: dict[str, Any], images: Sequence[dict[str, Any]]) -> None:
    """Writes samples.json, now that all images are there."""
    write(folder / SAMPLES_LIST, request, images)
    (folder / DRAFT).unlink(missing_ok=True)


def write(path: Path, request: dict[str, Any], images: Sequence[dict[str, Any]]) -> None:
    """Writes a list of images and the request that they are for."""
    from ..system.atomic import write_text

    content = {"format": FORMAT, "request": request, "images": list(images), "sheet": SHEET}
    write_text(path, json.dumps(content, indent=1))


def read(folder: Path) -> dict[str, Any] | None:
    """Returns the list that an earlier call left, finished or not; None if there was no earlier call."""
    for name in (SAMPLES_LIST, DRAFT):
        try:
            content = json.loads((folder / name).read_bytes())
            files = [*(image["file"] for image in content["images"]), content["sheet"]]
            named = all(isinstance(file, str) for file in files)
            if named and content["format"] == FORMAT and isinstance(content["request"], dict):
                return content
        except (OSError, ValueError, KeyError, TypeError):  # Somebody else's file of that name, or none.
            continue
    return None

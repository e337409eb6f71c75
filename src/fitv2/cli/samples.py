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


def free_folder(name: str = "outputs") -> Path:
    """Returns the first of outputs, outputs-2, outputs-3, ... that is not there or is empty."""
    for number in itertools.count(1):
        folder = Path(name if number == 1 else f"{name}-{number}")
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return folder
    raise AssertionError


def check_folder(folder: Path) -> None:
    """Raises UserError if a file is where the folder should be."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; name a folder for the images")


def begin(folder: Path, request: dict[str, Any], names: Sequence[str], overwrite: bool) -> None:
    """Prepares the folder for files of these names, without touching other files.

    The same request may be repeated. Raises UserError if the folder holds images of another request, or other files of
    these names, unless `overwrite` is set: it removes the images of the earlier request and replaces the other files.
    """
    from ..atomic import write_text
    from ..legacy import current_request

    mine = [*names, SHEET]
    earlier = read(folder)
    same = earlier is not None and current_request(earlier["request"]) == request
    if earlier is not None and not same:
        if not overwrite and any((folder / name).exists() for name in files_of(earlier)):
            raise UserError(
                f"{folder} holds images of another request; choose another --out, or add --overwrite to remove them"
            )
        for name in files_of(earlier):
            (folder / name).unlink(missing_ok=True)
    known = {*files_of(earlier), SAMPLES_LIST} if earlier is not None else set()
    foreign = [name for name in [*mine, SAMPLES_LIST] if name not in known and (folder / name).exists()]
    if foreign and not overwrite:
        raise UserError(
            f"{folder} holds {foreign[0]} already, which no request here has made; choose another --out, or add "
            "--overwrite to replace it"
        )
    images = [{"file": name} for name in names]
    write_text(folder / DRAFT, json.dumps({"format": FORMAT, "request": request, "images": images, "sheet": SHEET}))
    (folder / SAMPLES_LIST).unlink(missing_ok=True)


def finish(folder: Path, request: dict[str, Any], images: Sequence[dict[str, Any]]) -> None:
    """Writes samples.json, now that all images are there."""
    from ..atomic import write_text

    content = {"format": FORMAT, "request": request, "images": list(images), "sheet": SHEET}
    write_text(folder / SAMPLES_LIST, json.dumps(content, indent=1))
    (folder / DRAFT).unlink(missing_ok=True)


def read(folder: Path) -> dict[str, Any] | None:
    """Returns the list that an earlier call left, finished or not; None if there was no earlier call."""
    for name in (SAMPLES_LIST, DRAFT):
        try:
            content = json.loads((folder / name).read_bytes())
            if content["format"] == FORMAT and isinstance(content["request"], dict):
                files_of(content)
                return content
        except (OSError, ValueError, KeyError, TypeError):  # Somebody else's file of that name, or none.
            continue
    return None


def files_of(manifest: dict[str, Any]) -> list[str]:
    """Returns the names of the images and of the sheet, without any outside the folder."""
    names = [*(image["file"] for image in manifest["images"]), manifest["sheet"]]
    return [name for name in names if Path(name).name == name]

"""The format of a prepared data set: what `fitv2 prepare` writes, and all that reading it needs to know.

    settings.json   how images become latents; there from the start
    shards/         NUMBER-DIGEST.safetensors, each with a .jsonl that says what it holds, written after it
    index.jsonl     a line per file of the source, in order
    index.columns   what training needs of it, as arrays; made again if it is missing (`columns`)
    text/           features of the captions, if they were asked for (`text_features`)
    dataset.json    the whole, written last: without it the preparation has not finished

A tensor is called CONTENT.VARIANT, by the SHA-256 of the image's file. Pixels: (1, channels, height, width) uint8.
Moments: (flips, 2, channels, h, w) float16, the mean and the standard deviation of the latent of the image and, with
flip, of its mirror image, after the autoencoder's scaling and shift.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from .. import errors
from ..errors import UserError
from ..system.hashes import file_digest, json_digest
from .preprocessing import Preprocessing

FORMAT = 1
# Counts the rules by which files become pixels (`preprocessing`); sets of older rules load, but do not mix with others.
DECODING = 2
SETTINGS, SHARDS, INDEX, DATASET = "settings.json", "shards", "index.jsonl", "dataset.json"
COLUMNS = "index.columns"


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How images became latents.

    Attributes:
        patch_size: Latent pixels per token on each axis.
        flip: Whether mirror images belong to the set.
        channels: Of a latent.
        factor: Pixels per latent pixel on each axis.
        autoencoder: Folder or hub id; None for pixels.
        decoding: Version of the rules by which files became pixels.
    """

    kind: Literal["pixels", "moments"]
    max_tokens: int
    patch_size: int
    preprocessing: Preprocessing
    flip: bool
    channels: int
    dtype: Literal["uint8", "float16"]
    factor: int = 1
    autoencoder: str | None = None
    autoencoder_sha256: str | None = None
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    format: int = FORMAT
    decoding: int

    @property
    def patch(self) -> int:
        """Image pixels that a token's side covers."""
        return self.patch_size * self.factor

    @property
    def mode(self) -> Literal["RGB", "L"]:
        """Pillow's mode of the images."""
        return "L" if self.channels == 1 and self.kind == "pixels" else "RGB"

    @property
    def bytes_per_flip(self) -> int:
        """Bytes per latent pixel of one stored flip."""
        return self.channels * (1 if self.kind == "pixels" else 4)

    @property
    def digest(self) -> str:
        """A hash of what the latents depend on: weights count, not where they were loaded from."""
        return json_digest({key: value for key, value in asdict(self).items() if key != "autoencoder"})


def is_prepared(folder: Path) -> bool:
    """Whether a folder holds a prepared data set, finished or not."""
    return (folder / SETTINGS).is_file() and (folder / SHARDS).is_dir()


def read_settings(folder: Path) -> Preparation | None:
    """Reads what a folder was or is being prepared with; None for a new one. Raises UserError if it cannot be read."""
    if not (folder / SETTINGS).is_file():
        return None
    content = read_json(folder / SETTINGS)
    if content.get("format") != FORMAT:
        raise UserError(f"{folder} is of format {content.get('format')}, and this version knows {FORMAT}")
    try:
        return Preparation(**content)
    except TypeError as error:
        raise damaged(folder / SETTINGS, error) from None


def read_dataset(folder: Path) -> tuple[Preparation, dict[str, Any]]:
    """Reads settings and dataset.json of a finished preparation. Raises UserError for anything else."""
    preparation = read_settings(folder)
    if preparation is None:
        raise UserError(f"{folder} is no prepared data set: there is no {SETTINGS}; make one with fitv2 prepare")
    if not (folder / DATASET).is_file():
        raise UserError(f"the preparation of {folder} has not finished: run the same fitv2 prepare again")
    dataset = read_json(folder / DATASET)
    if missing := {"shards", "class_names", "index_sha256"} - dataset.keys():
        raise damaged(folder / DATASET, f"without {', '.join(sorted(missing))}")
    return preparation, dataset


def check_index(folder: Path, dataset: dict[str, Any]) -> None:
    """Raises UserError if index.jsonl is missing, or its hash is not the one in dataset.json."""
    path = folder / INDEX
    try:
        if file_digest(path) != dataset["index_sha256"]:
            raise damaged(path, "another hash than in dataset.json")
    except OSError as error:
        raise damaged(path, error) from None


def read_index(folder: Path, dataset: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the lines of index.jsonl. Raises UserError as `check_index` does."""
    check_index(folder, dataset)
    with (folder / INDEX).open("rb") as file:
        yield from map(json.loads, file)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises UserError if the file is missing or holds anything else."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise damaged(path, error) from None
    if not isinstance(content, dict):
        raise damaged(path, "no JSON object")
    return content


damaged = partial(errors.damaged, cure="run the same fitv2 prepare again")

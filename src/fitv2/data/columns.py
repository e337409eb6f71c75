"""The index of a prepared data set as arrays, in a file beside it: a million lines of JSON take too long to read.

index.columns: a line with the SHA-256 of the layout's number, the index's own SHA-256 and all that follows, then a
safetensors file.
"""

from __future__ import annotations

import hashlib
import json
import logging
from array import array
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from ..system.atomic import write_file
from .prepared import COLUMNS, check_index, read_index

logger = logging.getLogger(__name__)
# Stored as JSON: names may hold any character.
TEXTS = ("ids", "shards")
# Counts the layouts of the file.
FORMAT = 2


@dataclass(frozen=True)
class Columns:
    """The N images of a prepared data set, without the skipped files.

    Attributes:
        ids: (N,) names in the source.
        shards: Names of the files of tensors.
        labels: (N,) int64.
        shard: (N,) int64, the place in `shards`.
        possible: (N,) int64, how many variants an image has, 1 or 2.
        size: (N, 2, 2) int64, height and width in pixels by variant; of one variant alone, twice the same.
        offset: (N, 2) int64, where a variant begins in the shard, in bytes.
        crc32: (N, 2, 2) int64, by variant and flip.
        text: (bytes,) uint8, all captions in UTF-8, one after another: a million objects would take long to read.
        ends: (K + 1,) int64, 0 and where each caption ends, in bytes.
        counts: (N + 1,) int64, 0 and the number of captions of each image and all before it.
    """

    ids: list[str]
    shards: list[str]
    labels: np.ndarray
    shard: np.ndarray
    possible: np.ndarray
    size: np.ndarray
    offset: np.ndarray
    crc32: np.ndarray
    text: np.ndarray
    ends: np.ndarray
    counts: np.ndarray

    def captions(self, image: int) -> tuple[str, ...]:
        """Returns the captions of an image; there may be none."""
        first, last = self.counts[image : image + 2].tolist()
        ends = self.ends[first : last + 1].tolist()
        return tuple(str(self.text[a:b].tobytes(), "utf-8") for a, b in pairwise(ends))


def read_columns(folder: Path, dataset: dict[str, Any]) -> Columns:
    """Reads the columns; where they are missing or damaged, they are made from the index, and kept if possible.

    Raises UserError if the index is damaged.
    """
    check_index(folder, dataset)
    path = folder / COLUMNS
    try:
        with path.open("rb") as file:
            signature, content = file.readline(), file.read()
        if signature == _signature(dataset, content):
            return _from_bytes(content)
        logger.warning("%s is damaged, or belongs to another index or version: it is made again", path)
    except FileNotFoundError:
        logger.info("%s: reading every line of the index, once", folder)
    except OSError as error:
        logger.warning("%s cannot be read, so every line of the index is: %s", path, error)
    columns = _from_index(folder, dataset)
    try:
        _write(folder, dataset, columns)
    except OSError as error:
        logger.warning("%s cannot be written, so the next start reads every line of the index: %s", path, error)
    return columns


def write_columns(folder: Path, dataset: dict[str, Any]) -> None:
    """Writes the columns of the index. Raises OSError if they cannot be written."""
    _write(folder, dataset, _from_index(folder, dataset))


def _from_index(folder: Path, dataset: dict[str, Any]) -> Columns:
    ids: list[str] = []
    number: dict[str, int] = {}
    # Into plain arrays: as objects, a million images would fill gigabytes.
    labels, shard, possible, size, offset, crc32 = (array("q") for _ in range(6))
    text, ends, counts = bytearray(), array("q", [0]), array("q", [0])
    for line in read_index(folder, dataset):
        if "skipped" in line:
            continue
        ids.append(line["id"])
        for caption in line.get("captions", ()):
            text += caption.encode()
            ends.append(len(text))
        counts.append(len(ends) - 1)
        labels.append(line["label"])
        shard.append(number.setdefault(line["shard"], len(number)))
        variants = list(line["variants"].values())
        possible.append(len(variants))
        for stored in (variants[0], variants[-1]):
            size.extend(stored["size"])
            offset.append(stored["offset"])
            crc32.extend((stored["crc32"][0], stored["crc32"][-1]))
    return Columns(
        ids=ids,
        shards=list(number),
        labels=np.array(labels),
        shard=np.array(shard),
        possible=np.array(possible),
        size=np.array(size).reshape(-1, 2, 2),
        offset=np.array(offset).reshape(-1, 2),
        crc32=np.array(crc32).reshape(-1, 2, 2),
        text=np.frombuffer(text, np.uint8),
        ends=np.array(ends),
        counts=np.array(counts),
    )


def _write(folder: Path, dataset: dict[str, Any], columns: Columns) -> None:
    arrays = dict(vars(columns))
    for name in TEXTS:
        arrays[name] = np.frombuffer(json.dumps(arrays[name]).encode(), np.uint8)
    content = save(arrays)
    write_file(folder / COLUMNS, lambda draft: draft.write_bytes(_signature(dataset, content) + content))


def _from_bytes(content: bytes) -> Columns:
    arrays: dict[str, Any] = load(content)
    return Columns(**arrays | {name: json.loads(arrays[name].tobytes()) for name in TEXTS})


def _signature(dataset: dict[str, Any], content: bytes) -> bytes:
    """The first line: which index the columns are of, in which layout, and that they are whole."""
    digest = hashlib.sha256(f"{FORMAT} {dataset['index_sha256']}".encode())
    digest.update(content)
    return digest.hexdigest().encode() + b"\n"

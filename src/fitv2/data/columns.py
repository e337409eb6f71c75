"""The index of a prepared data set as arrays, in a file beside it: a million lines of JSON take too long to read.

index.columns: a line with the SHA-256 of the index's own SHA-256 and of all that follows, then a safetensors file.
"""

from __future__ import annotations

import hashlib
import json
import logging
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from ..system.atomic import write_file
from .packed_captions import CaptionPacker, PackedCaptions
from .prepared import COLUMNS, check_index, read_index

logger = logging.getLogger(__name__)
# Stored as JSON: names may hold any character.
TEXTS = ("ids", "shards")
# Before the names of the arrays of captions, which are only there if an image has one.
CAPTIONS = "captions."


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
        captions: Of the N images; None if none has any.
    """

    ids: list[str]
    shards: list[str]
    labels: np.ndarray
    shard: np.ndarray
    possible: np.ndarray
    size: np.ndarray
    offset: np.ndarray
    crc32: np.ndarray
    captions: PackedCaptions | None = None


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
        logger.warning("%s is damaged, or of another index: it is made again", path)
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
    captions = CaptionPacker()
    # Into plain arrays: as objects, a million images would fill gigabytes.
    labels, shard, possible, size, offset, crc32 = (array("q") for _ in range(6))
    for line in read_index(folder, dataset):
        if "skipped" in line:
            continue
        ids.append(line["id"])
        captions.add(line.get("captions", ()))
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
        captions=captions.packed(),
    )


def _write(folder: Path, dataset: dict[str, Any], columns: Columns) -> None:
    arrays = dict(vars(columns))
    captions = arrays.pop("captions")
    if captions is not None:
        arrays |= {CAPTIONS + name: array for name, array in vars(captions).items()}
    for name in TEXTS:
        arrays[name] = np.frombuffer(json.dumps(arrays[name]).encode(), np.uint8)
    content = save(arrays)
    write_file(folder / COLUMNS, lambda draft: draft.write_bytes(_signature(dataset, content) + content))


def _from_bytes(content: bytes) -> Columns:
    arrays: dict[str, Any] = load(content)
    packed = {name: arrays.pop(name) for name in list(arrays) if name.startswith(CAPTIONS)}
    arrays |= {name: json.loads(arrays[name].tobytes()) for name in TEXTS}
    if packed:
        arrays["captions"] = PackedCaptions(**{name.removeprefix(CAPTIONS): array for name, array in packed.items()})
    return Columns(**arrays)


def _signature(dataset: dict[str, Any], content: bytes) -> bytes:
    """The first line: which index the columns are of, and that they are whole."""
    digest = hashlib.sha256(dataset["index_sha256"].encode())
    digest.update(content)
    return digest.hexdigest().encode() + b"\n"

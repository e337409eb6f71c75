"""What a text encoder made of the captions of prepared data, stored once for any number of trainings.

    text/DIGEST/settings.json       the encoder: its name, the digest of its files, its numbers per token
    text/DIGEST/KEYS.safetensors    of n captions:
        keys        (n, 32) uint8, the SHA-256 of each in UTF-8
        ends        (n + 1,) int64, 0 and the number of tokens of each and all before it
        crc32       (n,) int64, of the key and the features of each
        features    (tokens, channels) float16

A caption takes 48 bytes, and 2 for each channel of each token.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..system.atomic import write_file

logger = logging.getLogger(__name__)
TEXT = "text"


class Table(NamedTuple):
    """Everything in a file except the features.

    Attributes:
        keys, ends, crc32: See the module.
        begin: The place of the first feature in the file, in bytes.
        channels: Numbers of each token.
    """

    keys: np.ndarray
    ends: np.ndarray
    crc32: np.ndarray
    begin: int
    channels: int

    def read(self, path: Path, number: int) -> np.ndarray:
        """Returns the features (tokens, channels) of a caption, zeros where the file ends too early. Raises OSError."""
        start, end = self.ends[number : number + 2].tolist()
        features = np.zeros((end - start, self.channels), "<f2")
        # Read, not mapped: a map of a file that got shorter kills the process. And not by safetensors: without a map it
        # would read the features of all captions.
        with path.open("rb", buffering=0) as file:
            file.seek(self.begin + start * self.channels * features.itemsize)
            file.readinto(features.data)
        return features


class TextFeatures:
    """The features of one encoder, by caption, read when they are asked for; damaged ones count as not there."""

    def __init__(self, folder: Path) -> None:
        self.paths, tables = [], []
        for path in feature_files(folder):
            try:
                tables.append(read_table(path))
                self.paths.append(path)
            except (OSError, SafetensorError, ValueError) as error:
                tell_damage(path, error)
        # As text, which NumPy sorts and searches.
        keys = np.concatenate([np.zeros((0, 32), np.uint8), *(table.keys for table in tables)]).view("S32")[:, 0]
        order = np.argsort(keys)
        self.keys = keys[order]
        self.shard = np.repeat(np.arange(len(tables)), [len(table.keys) for table in tables])[order]
        self.number = np.concatenate([np.zeros(0, np.int64), *(np.arange(len(table.keys)) for table in tables)])[order]
        self.tables = tables
        self.damaged: set[Path] = set()

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, caption: str) -> bool:
        return self._place(key_of(caption)) is not None

    def get(self, caption: str) -> np.ndarray | None:
        """Returns (tokens, channels) float16; None if they are not there as they were written."""
        key = key_of(caption)
        place = self._place(key)
        if place is None:
            return None
        shard, number = int(self.shard[place]), int(self.number[place])
        path, table = self.paths[shard], self.tables[shard]
        try:
            features = table.read(path, number)
            if checksum(key, features) == table.crc32[number]:
                return features
            why: object = "another checksum"
        except OSError as error:
            why = error
        if path not in self.damaged:
            self.damaged.add(path)
            tell_damage(path, why)
        return None

    def _place(self, key: bytes) -> int | None:
        place = int(np.searchsorted(self.keys, np.frombuffer(key, "S32")[0]))
        return place if self.keys[place : place + 1].tobytes() == key else None


def features_folder(root: Path, digest: str) -> Path:
    """Returns where prepared data has the features of the encoder with this digest."""
    return root / TEXT / digest[:16]


def feature_files(folder: Path) -> list[Path]:
    """Returns the files of features in a folder, in the order of their names."""
    return sorted(folder.glob("[!.]*.safetensors"))


def write_features(folder: Path, captions: Sequence[str], features: Sequence[np.ndarray]) -> None:
    """Writes the features (tokens, channels) float16 of captions as one file, whole or not at all."""
    keys = [key_of(caption) for caption in captions]
    arrays = {
        "keys": np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32),
        "ends": np.cumsum([0, *map(len, features)]),
        "crc32": np.array([checksum(*one) for one in zip(keys, features, strict=True)]),
        "features": np.concatenate(features),
    }
    name = hashlib.sha256(b"".join(keys)).hexdigest()[:16]
    write_file(folder / f"{name}.safetensors", lambda draft: draft.write_bytes(save(arrays)))


def read_table(path: Path) -> Table:
    """Reads everything except the features. Raises OSError, SafetensorError or ValueError if a file is damaged."""
    with safe_open(path, "np", backend="pread") as file:
        keys, ends, crc32 = (file.get_tensor(name) for name in ("keys", "ends", "crc32"))
    with path.open("rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    features = json.loads(header)["features"]
    if features["dtype"] != "F16" or len(features["shape"]) != 2:
        raise ValueError("its features are not those of tokens in float16")
    tokens, channels = features["shape"]
    if keys.shape != (len(keys), 32) or not len(keys) == len(crc32) == len(ends) - 1:
        raise ValueError("its parts differ in length")
    if ends[0] != 0 or ends[-1] != tokens or (np.diff(ends) < 0).any():
        raise ValueError("its captions do not end where they can")
    return Table(keys, ends, crc32, 8 + len(header) + features["data_offsets"][0], channels)


def is_whole(path: Path) -> bool:
    """Whether all features of a file are as they were written."""
    try:
        table = read_table(path)
        with safe_open(path, "np", backend="pread") as file:
            features = np.split(file.get_tensor("features"), table.ends[1:-1])
        found = [checksum(key.tobytes(), one) for key, one in zip(table.keys, features, strict=True)]
        return found == table.crc32.tolist()
    except (OSError, SafetensorError, ValueError):
        return False


def key_of(caption: str) -> bytes:
    """Returns the SHA-256 of a caption in UTF-8."""
    return hashlib.sha256(caption.encode()).digest()


def checksum(key: bytes, features: np.ndarray) -> int:
    """Returns the CRC-32 of the key of a caption and its features."""
    return zlib.crc32(features.tobytes(), zlib.crc32(key))


def tell_damage(path: Path, why: object) -> None:
    """Warns that a file cannot be used."""
    logger.warning("%s is damaged (%s): its captions are encoded again; fitv2 prepare makes it again", path, why)

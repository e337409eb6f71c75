"""Prepared images as a data set: latents from shards, drawn again every epoch from their moments."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..classes import readable_names
from .columns import read_columns
from .dataset import Dataset
from .formats import UnreadableImage
from .prepared import SHARDS, read_dataset
from .preprocessing import to_tensor

AGAIN = "fitv2 inspect --verify lists all such images, and the same fitv2 prepare as before makes them again"


class LatentShards(Dataset):
    """A folder that `fitv2 prepare` has made; `ids` (N,) are names in its source.

    flip: whether each epoch takes the mirror image with probability 1/2, if the set was prepared with flip. Raises
    UserError if the folder is not prepared, not finished or damaged.
    """

    def __init__(self, root: str | Path, flip: bool = True) -> None:
        self.root = Path(root)
        self.preparation, dataset = read_dataset(self.root)
        self.flip = flip and self.preparation.flip
        self.patch_size, self.channels = self.preparation.patch_size, self.preparation.channels
        self.autoencoder, self.factor = self.preparation.autoencoder, self.preparation.factor
        self.class_names = readable_names(dataset["class_names"])
        self.num_classes = len(self.class_names)
        self.columns = columns = read_columns(self.root, dataset)
        self.ids, self.shards, self.shard, self.offset = columns.ids, columns.shards, columns.shard, columns.offset
        self.labels, self.possible, self.crc32 = columns.labels, columns.possible, columns.crc32
        self.variant_hw = columns.size // self.preparation.patch
        self.captioned = len(columns.text) > 0

    def load(self, index: int, variant: int, hw: object, flip: bool, rng: Callable[[], np.random.Generator]) -> Tensor:
        if self.preparation.kind == "pixels":
            pixels = self.stored(index, variant, 0)
            return to_tensor(pixels[:, :, ::-1] if flip else pixels)
        mean, std = self.stored(index, variant, int(flip)).astype(np.float32)
        return torch.from_numpy(mean + std * rng().standard_normal(mean.shape, np.float32))

    def captions(self, index: int, *drawn: object) -> tuple[str, ...]:
        return self.columns.captions(index)

    def stored(self, index: int, variant: int, flip: int) -> np.ndarray:
        """Returns (channels, h, w) uint8, or (2, channels, h, w) float16 with mean and standard deviation.

        Raises UnreadableImage if they are not what was written.
        """
        preparation = self.preparation
        h, w = (self.variant_hw[index, variant] * self.patch_size).tolist()
        length = h * w * preparation.bytes_per_flip
        path = self.root / SHARDS / self.shards[self.shard[index]]
        try:
            # Read, not mapped: a map of a file that got shorter kills the process, and its pages count as ours.
            with path.open("rb", buffering=0) as file:
                file.seek(int(self.offset[index, variant]) + flip * length)
                content = file.read(length)
        except OSError as error:
            raise UnreadableImage(f"{self.ids[index]} cannot be read from {path}: {error.strerror}") from error
        if len(content) < length or zlib.crc32(content) != self.crc32[index, variant, flip]:
            raise UnreadableImage(f"{self.ids[index]} is damaged in {path}; {AGAIN}")
        numbers = np.frombuffer(content, preparation.dtype)
        return numbers.reshape((-1, h, w) if preparation.kind == "pixels" else (2, -1, h, w))

    def identity(self) -> tuple[list[str], list[np.ndarray], None]:
        return self.ids, [self.labels, self.variant_hw, self.crc32], None

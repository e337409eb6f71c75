"""Squares cut out of images, for training an autoencoder: in an epoch each pixel is seen about once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ..randomness import Purpose, numpy_generator
from .dataset import Dataset, Epoch

# Crops of one image in an epoch, at most: a large one has to be decoded for each.
MOST_CROPS = 16


class Round(NamedTuple):
    """The crop with index `number` of each image of a source that has more crops than that. images: (n,) int64."""

    source: Dataset
    number: int
    images: np.ndarray


class Crops:
    """The crops of one or several sets of images, as many of each image as fit into it.

    Each crop is of an image at a size of its own, mirrored or not, as the epochs of its set draw it. Where an image is
    smaller than the square, its edges are continued: on a CPU every new shape costs more than the pixels.

    Args:
        sources: Sets of colour images, of one patch size.
        side: Of the squares, in patches.
        held_out: Indices of those images of each source that are held out.

    Attributes:
        patch_size: Pixels of a patch's side.
        held_out: Indices of all crops of these images.
        measured: Indices of the first crop of each of them.
    """

    channels = 3

    def __init__(self, sources: Sequence[Dataset], side: int, held_out: Sequence[np.ndarray]) -> None:
        self.sources, self.side, self.patch_size = list(sources), side, sources[0].patch_size
        self.rounds, left_out = [], []
        for source, chosen in zip(sources, held_out, strict=True):
            counts = np.clip(source.first_hw.prod(1) // side**2, 1, MOST_CROPS)
            for number in range(int(counts.max())):
                images = np.flatnonzero(counts > number)
                self.rounds.append(Round(source, number, images))
                left_out.append(np.isin(images, chosen))
        self.starts = np.cumsum([0, *(len(part.images) for part in self.rounds)])
        self.held_out = np.flatnonzero(np.concatenate(left_out))
        first = np.repeat([part.number == 0 for part in self.rounds], np.diff(self.starts))
        self.measured = self.held_out[first[self.held_out]]

    @property
    def most_tokens(self) -> int:
        """The tokens of every crop."""
        return self.side**2

    def __len__(self) -> int:
        return int(self.starts[-1])

    def epoch(self, epoch: int, seed: int) -> CropEpoch:
        return CropEpoch(self, epoch, seed)

    def digest(self) -> str:
        """Returns 16 hexadecimal digits that depend on the images, as `Dataset.digest`."""
        return hashlib.sha256(" ".join(source.digest() for source in self.sources).encode()).hexdigest()[:16]


class CropEpoch:
    """The crops of one epoch, which follow from (seed, epoch, crop) alone.

    Attributes:
        hw: (N, 2) int64, height and width of each crop in patches.
        labels: (N,) int64, all 0.
    """

    def __init__(self, crops: Crops, epoch: int, seed: int) -> None:
        self.crops, self.key = crops, (seed, epoch)
        self.views: list[Epoch] = [part.source.epoch(epoch * MOST_CROPS + part.number, seed) for part in crops.rounds]
        self.hw = np.full((len(crops), 2), crops.side)
        self.labels = np.zeros(len(crops), np.int64)

    def load(self, index: int) -> Tensor:
        """Returns a crop, (3, side * p, side * p) float32 in [-1, 1]. Raises UnreadableImage."""
        side, generator = self.crops.side * self.crops.patch_size, numpy_generator(Purpose.CROPS, *self.key, index)
        image = self.whole(index)
        height, width = image.shape[1:]
        top, left = (int(generator.integers(max(length - side, 0) + 1)) for length in (height, width))
        part = image[:, top : top + side, left : left + side]
        return F.pad(part, (0, max(side - width, 0), 0, max(side - height, 0)), mode="replicate").contiguous()

    def whole(self, index: int) -> Tensor:
        """Returns the whole image that a crop is cut out of, at the same size. Raises UnreadableImage."""
        view, image = self._place(index)
        return view.load(image)

    def check(self, index: int) -> None:
        """Reads the image of a crop again, as `Epoch.check`."""
        view, image = self._place(index)
        view.check(image)

    def _place(self, index: int) -> tuple[Epoch, int]:
        """Returns the set that a crop is from, and the number of its image there."""
        number = int(np.searchsorted(self.crops.starts, index, side="right")) - 1
        return self.views[number], int(self.crops.rounds[number].images[index - self.crops.starts[number]])

    def caption(self, index: int) -> str:
        """Returns an empty text: no caption tells what is on a part of an image."""
        return ""

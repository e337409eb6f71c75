"""What training needs of a data set: sizes known before pictures are loaded, so that packs can be planned."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor


class EpochView(Protocol):
    """A data set as one epoch sees it: what is drawn at random (crop, flip, scale) is fixed.

    hw: (N, 2) int64, height and width of each latent in patches. labels: (N,) int64 in [0, num_classes), or all 0.
    """

    hw: np.ndarray
    labels: np.ndarray

    def latent(self, index: int) -> Tensor:
        """(C, h * p, w * p) float32 in [-1, 1], of the size that hw[index] promises."""


class Dataset(Protocol):
    """N latents or pictures, channels C, cut into patches of p x p by the model.

    patch_size: p. num_classes: 0 for a set without classes. class_names: num_classes names in the order of the labels.
    autoencoder: the folder or hub id of the one whose latents these are; None for pixels.
    """

    patch_size: int
    channels: int
    num_classes: int
    class_names: list[str]
    autoencoder: str | None

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, seed: int) -> EpochView:
        """The view of one epoch: a function of (seed, epoch) alone, so any worker or a resumed run gets the same."""

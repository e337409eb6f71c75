"""What a network sees in pictures: features to measure by, and what networks that give them have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.images import to_array
from ..errors import UserError
from ..randomness import Purpose, numpy_generator

# Pictures through the network at once; and bytes of pictures that wait to be put together by size.
BATCH = 50
WAITING = 1 << 28


@dataclass(frozen=True)
class Features:
    """Of B pictures, float32 on the CPU. pooled: (B, F), of the whole picture. spatial: (B, S), still with places.
    probabilities: (B, K), of classes.
    """

    pooled: Tensor
    spatial: Tensor
    probabilities: Tensor


class Extractor(Protocol):
    """A network and how pictures are put into it.

    name: as `--extractor`. score: what the Frechet distance of its features is called. digest: SHA-256 of its weights.
    resize: how a picture of any size becomes the network's input, in words. mode: Pillow's mode of the pictures.
    class_names: of its probabilities, None where they are not known.
    """

    name: str
    score: str
    digest: str
    resize: str
    mode: Literal["RGB", "L"]
    class_names: Sequence[str] | None

    def __call__(self, pictures: Tensor) -> Features:
        """Pictures (B, 3 or 1 as the mode says, H, W) uint8, of one size."""


def extract(extractor: Extractor, images: Iterable[Image.Image], done: Callable[[int], None]) -> Iterator[Features]:
    """Of images of any sizes, some at a time and in order; `done` gets how many are finished."""
    for waiting in gathered(images):
        arrays = [to_array(image) for image in waiting]
        order = sorted(range(len(arrays)), key=lambda i: arrays[i].shape)
        found = []
        for _, same in groupby(order, key=lambda i: arrays[i].shape):
            same = list(same)
            for start in range(0, len(same), BATCH):
                chosen = same[start : start + BATCH]
                # By default a GPU rounds the factors of convolutions to 10 bits, and figures would be its own.
                with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                    found.append(extractor(torch.from_numpy(np.stack([arrays[i] for i in chosen]))))
                done(len(chosen))
        back = torch.tensor(order).argsort()
        parts = (torch.cat([getattr(part, field.name) for part in found])[back] for field in fields(Features))
        yield Features(*parts)


def gathered(images: Iterable[Image.Image]) -> Iterator[list[Image.Image]]:
    """Consecutive images, as many as may wait."""
    waiting, held = [], 0
    for image in images:
        waiting.append(image)
        held += image.width * image.height * len(image.getbands())
        if held >= WAITING or len(waiting) == 10 * BATCH:
            yield waiting
            waiting, held = [], 0
    if waiting:
        yield waiting


def drawn_sets(labels: Tensor, wanted: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of two equal random sets of images and of all others, of images of the classes `labels` (N,).

    wanted: (M,) the class of each image of a set; of a class both sets together take at most all, so a set may be
    smaller. Equal frequencies of classes in both sets: other ones would be a distance.
    """
    order = torch.from_numpy(numpy_generator(Purpose.SPLITS, seed).permutation(len(labels)))
    first, second, others = [], [], [order[~torch.isin(labels[order], wanted)]]
    for label, number in zip(*wanted.unique(return_counts=True), strict=True):
        of_class = order[labels[order] == label]
        number = min(int(number), len(of_class) // 2)
        first.append(of_class[:number])
        second.append(of_class[number : 2 * number])
        others.append(of_class[2 * number :])
    return torch.cat(first), torch.cat(second), torch.cat(others)


def by_class(labels: Tensor) -> Tensor | None:
    """The labels (N,) of a set with equally many images of each of its classes, which chance does not make; else None.

    Equal within one, as classes in turn are, and at least two of each.
    """
    counts = labels.unique(return_counts=True)[1]
    return labels if counts.min() >= 2 and counts.max() - counts.min() <= 1 else None


def check_features(*sets: Tensor) -> None:
    """Raises ValueError for anything but finite features (N, F), N at least 1, all of one network."""
    for features in sets:
        if features.ndim != 2 or not len(features):
            raise UserError(f"features are (N, F) with at least one picture, not {tuple(features.shape)}")
        if not features.isfinite().all():
            broken = int((~features.isfinite().all(1)).sum())
            raise UserError(f"the features of {broken} of {len(features)} pictures are not finite numbers")
    if len({features.shape[1] for features in sets}) > 1:
        numbers = " and ".join(str(features.shape[1]) for features in sets)
        raise UserError(f"the features are {numbers} numbers: not of the same network")

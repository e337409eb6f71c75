"""A data set: image sizes that are known before an image is loaded, and what an epoch draws from them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..randomness import Purpose, numpy_generator
from .scan import ScanReport

# Files whose bytes are part of a digest.
SAMPLED = 16
# What an epoch draws for an image, as `Dataset.load` takes it: variant, size in patches, mirroring, generator.
Drawn = tuple[int, tuple[int, int], bool, Callable[[], np.random.Generator]]


def evenly(total: int, most: int) -> np.ndarray:
    """Returns at most `most` of the indices of `total` things, evenly spread, int64."""
    return np.linspace(0, total - 1, min(most, total)).astype(int)


class Dataset(ABC):
    """N images or latents of C channels, which the model cuts into patches of p x p; a source of `Epoch`s.

    Attributes:
        patch_size: p.
        channels: C.
        num_classes: 0 for a set without classes.
        class_names: One name per class in the order of the labels; may be empty.
        autoencoder: Folder or hub id of the autoencoder whose latents these are; None for pixels.
        labels: (N,) int64 in [0, num_classes), or all 0.
        variant_hw: (N, V, 2) int64, height and width of each variant in patches, at full scale.
        possible: (N,) int64 in 1 to V, how many variants each image has.
        flip: Whether an epoch mirrors each image left to right with probability 1/2.
        drawn: What an epoch draws for each image, in the order of the random numbers.
        purpose: What the generator of an image in an epoch is for.
        report: What a scan of the files found, if there was one.
        budgets: The number of token budgets that an epoch draws from, the largest first among the variants.
        held_out: Indices of images that the set itself keeps from training; None if it leaves that to the recipe.
        captioned: Whether images have captions, if captions were requested.
        unread_captions: Whether there seem to be captions that were not requested.
    """

    patch_size: int
    channels: int
    num_classes: int
    class_names: Sequence[str]
    autoencoder: str | None = None
    labels: np.ndarray
    variant_hw: np.ndarray
    possible: np.ndarray
    flip: bool = False
    drawn: tuple[str, ...] = ("variant", "flip")
    purpose: Purpose = Purpose.LATENTS
    report: ScanReport | None = None
    budgets: int = 1
    held_out: np.ndarray | None = None
    captioned: bool = False
    unread_captions: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def epoch(self, epoch: int, seed: int) -> Epoch:
        return Epoch(self, epoch, seed)

    @abstractmethod
    def load(
        self, index: int, variant: int, hw: tuple[int, int], flip: bool, rng: Callable[[], np.random.Generator]
    ) -> Tensor:
        """Returns one image as (C, h * p, w * p) float32. Raises UnreadableImage if it cannot be read any more.

        variant: in [0, possible[index]). hw: in patches, as `sized` gives them. flip: whether to mirror the image left
        to right. rng: returns the generator of this image in this epoch.
        """

    def check(self, index: int, *drawn: Any) -> None:
        """Reads an image again; drawn: the other arguments of `load`. Raises UnreadableImage."""
        self.load(index, *drawn)

    def captions(
        self, index: int, variant: int, hw: tuple[int, int], flip: bool, rng: Callable[[], np.random.Generator]
    ) -> Sequence[str]:
        """Returns what the image of the same arguments of `load` shows, in words; there may be none, or several."""
        return ()

    def labelled(self, variant: np.ndarray) -> np.ndarray:
        """Returns the labels (N,) of variants (N,); `num_classes` means no class."""
        return self.labels

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draws (N,) numbers in [0, 1) for each of `drawn`; those of image i do not depend on the images after it."""
        return dict(zip(self.drawn, rng.random((len(self), len(self.drawn))).T, strict=True))

    def sized(self, variant: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Returns (N, 2) int64 sizes in patches for variants (N,) and numbers (N,) in [0, 1) that decide on a scale."""
        return self.variant_hw[np.arange(len(self)), variant]

    @cached_property
    def first_hw(self) -> np.ndarray:
        """(N, 2) sizes in patches of epoch 0 with seed 0, which stand for all epochs in shapes, digests and costs."""
        return self.epoch(0, 0).hw

    @property
    def most_tokens(self) -> int:
        """The tokens of the largest image that any epoch can draw."""
        return int(self.variant_hw.prod(-1).max())

    def shapes(self, most: int) -> list[list[tuple[int, int, int]]]:
        """Returns the `most` frequent (height, width, count) in latent pixels of each class, in one epoch.

        Sizes of equal frequency are in the order of their first image. Of several budgets the largest counts: these are
        the sizes that the model is asked for.
        """
        hw = self.first_hw if self.budgets == 1 else self.variant_hw[:, 0]
        height, width = hw.T
        key = (self.labels * (height.max() + 1) + height) * (width.max() + 1) + width
        _, first, count = np.unique(key, return_index=True, return_counts=True)
        order = np.lexsort((first, -count))
        shapes: list[list[tuple[int, int, int]]] = [[] for _ in range(max(self.num_classes, 1))]
        found = np.column_stack((self.labels[first], hw[first] * self.patch_size, count))
        for label, h, w, number in found[order].tolist():
            if len(shapes[label]) < most:
                shapes[label].append((h, w, number))
        return shapes

    def examples(self, most: int) -> list[tuple[str, tuple[int, int]]]:
        """Returns at most `most` captions, of images evenly spread over the set, each with the image's (height, width)
        in latent pixels in epoch 0; none for a set without captions.
        """
        if not self.captioned:
            return []
        view, images = self.epoch(0, 0), np.delete(np.arange(len(self)), [] if self.held_out is None else self.held_out)
        chosen = images[evenly(len(images), most)]
        sizes = (view.hw[chosen] * self.patch_size).tolist()
        return [(view.caption(i), (h, w)) for i, (h, w) in zip(chosen.tolist(), sizes, strict=True)]

    def digest(self) -> str:
        """Returns 16 hexadecimal digits of names, sizes and labels, and of the bytes of a few files, for checkpoints.

        They depend on the data and not on its place; for prepared data, they cover all checksums.
        """
        names, facts, folder = self.identity()
        digest = hashlib.sha256(repr(list(self.class_names)).encode(errors="surrogateescape"))
        digest.update("\n".join(names).encode(errors="surrogateescape"))
        for array in facts:
            digest.update(np.ascontiguousarray(array, dtype=np.int64).tobytes())
        if folder is not None:
            for i in evenly(len(names), SAMPLED):
                with suppress(OSError):  # Training itself reports what it cannot read.
                    digest.update((folder / names[i]).read_bytes())
        return digest.hexdigest()[:16]

    def identity(self) -> tuple[list[str], Sequence[np.ndarray], Path | None]:
        """Returns what `digest` covers: names, arrays of whole numbers, and the folder of files with these names."""
        return [], [self.labels, self.first_hw], None


class Epoch:
    """A data set as one epoch sees it, with what is drawn for each image: variant, mirroring, scale and noise.

    The numbers follow from (seed, epoch, image) alone, so any process and a resumed run get the same.

    Attributes:
        hw: (N, 2) int64, height and width of each image in patches.
        labels: (N,) int64 in [0, num_classes], the highest for an image of no class.
        variant: (N,) int64.
        flip: (N,) bool.
    """

    def __init__(self, dataset: Dataset, epoch: int, seed: int) -> None:
        self.dataset, self.key = dataset, (seed, epoch)
        drawn = dataset.draw(numpy_generator(Purpose.VARIANTS, seed, epoch))
        nothing = np.zeros(len(dataset))
        self.variant = (drawn.get("variant", nothing) * dataset.possible).astype(np.int64)
        self.labels = dataset.labelled(self.variant)
        self.flip = dataset.flip & (drawn.get("flip", nothing) < 0.5)
        self.hw = dataset.sized(self.variant, drawn.get("scale", nothing))

    def load(self, index: int) -> Tensor:
        """Returns (C, h * p, w * p) float32, of the size that hw[index] promises. Raises UnreadableImage."""
        return self.dataset.load(index, *self._drawn(index))

    def check(self, index: int) -> None:
        """Reads one image again, even if it is in memory. Raises UnreadableImage if it cannot be read any more."""
        self.dataset.check(index, *self._drawn(index))

    def caption(self, index: int) -> str:
        """Returns what the image shows, in words, one of its captions; empty if it has none."""
        captions = self.dataset.captions(index, *self._drawn(index))
        if len(captions) < 2:
            return captions[0] if captions else ""
        return captions[int(numpy_generator(Purpose.CAPTIONS, *self.key, index).integers(len(captions)))]

    def _drawn(self, index: int) -> Drawn:
        rng = partial(numpy_generator, self.dataset.purpose, *self.key, index)
        height, width = self.hw[index].tolist()
        return int(self.variant[index]), (height, width), bool(self.flip[index]), rng

"""The held-out images: never trained on, and always measured with the same noise at the same times of a density.

A network that only memorises its images gets worse on these, which the training loss does not show.
"""

from __future__ import annotations

import logging
import math
import time
import zlib
from contextlib import AbstractContextManager
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..build import LossAt, Times
from ..data.cutouts import FEWEST
from ..data.dataset import Dataset, Epoch
from ..data.formats import UnreadableImage
from ..distributed.parallel import ParallelModel
from ..distributed.ranks import all_gather
from ..randomness import Purpose, numpy_generator, torch_generator
from ..sampling.generate import batches
from ..settings.recipe import TrainingSettings
from ..text import PromptEncoder
from ..tokens import TokenBatch, upload

logger = logging.getLogger(__name__)
# Images that are held out.
LEAST, MOST = 64, 256
# Ranges of time, 0 is noise and 1 is data, and classes of size that are reported by themselves.
TIME_BINS, SIZE_CLASSES = 4, 4
# The multiples of this number, modulo 1, fill [0, 1] evenly.
GOLDEN = (math.sqrt(5) - 1) / 2
MIXING = np.uint64(int(GOLDEN * 2**64) | 1)
LOSS, BY_TIME, BY_SIZE = "holdout_loss", "holdout_loss/time_", "holdout_loss/tokens_"


def measures(training: TrainingSettings) -> bool:
    """Whether the held-out loss is measured.

    It is not for transitions: a model teaches them, and how well they agree with the data says nothing.
    """
    return training.holdout > 0 and training.objective == "flow"


def held_out_of(dataset: Dataset, training: TrainingSettings) -> np.ndarray:
    """Returns the indices of the images that are never trained on, (N,) int64: by the set itself, or chosen here."""
    return choose_held_out(dataset, training.holdout if measures(training) else 0.0)


def choose_held_out(dataset: Dataset, fraction: float) -> np.ndarray:
    """Returns the indices of the held-out images, (N,) int64, unless the set chooses them itself.

    N is the fraction of the images, at least 64 and at most 256; 0 of fewer than 640 images, and for a fraction of 0.
    Hashes of the names decide: where images are added or removed, nearly all of the others stay what they were.
    """
    if dataset.held_out is not None:
        return dataset.held_out
    if not fraction or len(dataset) < FEWEST:
        return np.empty(0, np.int64)
    number = min(max(round(fraction * len(dataset)), LEAST), MOST)
    names = dataset.identity()[0]
    if not names:
        return np.argsort(numpy_generator(Purpose.HOLDOUT).random(len(dataset)), kind="stable")[:number]
    # The product carries every bit of a checksum into the upper ones, which decide. No loop: there may be a million.
    encoded = map(partial(str.encode, errors="surrogateescape"), names)
    hashes = np.fromiter(map(zlib.crc32, encoded), np.uint64, len(names)) * MIXING
    return np.argsort(hashes, kind="stable")[:number]


class HeldOutPack(NamedTuple):
    """Uses of held-out images that fit a batch. uses: (B,) their numbers. readable: (B,) bool."""

    uses: np.ndarray
    readable: list[bool]
    batch: TokenBatch
    noise: Tensor
    times: Tensor
    labels: Tensor
    captions: list[str]


class Holdout:
    """The held-out images, each used once or, if they are few, several times at other times with other noise.

    text: The text encoder, for a network that is conditioned on captions.

    Attributes:
        chosen: (N,) the indices of the held-out images; N may be 0.
        images: (U,) the image of each use, U at most 256; 0 if training.holdout is 0.
        times: (U,) in [0, 1], spread like those of training, so that the losses of both compare.
        tokens: (U,) the sizes.
    """

    def __init__(
        self,
        dataset: Dataset,
        training: TrainingSettings,
        loss_at: LossAt,
        times: Times,
        text: PromptEncoder | None = None,
    ) -> None:
        self.dataset, self.loss_at, self.text = dataset, loss_at, text
        self.chosen = held_out_of(dataset, training)
        measured = self.chosen[:: -(-len(self.chosen) // MOST) or 1] if measures(training) else self.chosen[:0]
        number = max(len(measured), 1)
        self.images = np.tile(measured, MOST // number)
        self.repetition = np.arange(len(self.images)) // number
        self.tokens = dataset.first_hw[self.images].prod(1)
        even = (0.5 + GOLDEN * np.arange(len(self.images))) % 1
        self.times = times(torch.from_numpy(even), torch.from_numpy(self.tokens)).numpy()
        self.plan = [np.array(pack) for pack in batches(self.tokens.tolist(), training.max_tokens_per_batch)]
        self.loaded: dict[int, HeldOutPack] = {}

    @cached_property
    def view(self) -> Epoch:
        return self.dataset.epoch(0, 0)

    def measure(self, model: ParallelModel, averaged: AbstractContextManager[None]) -> dict[str, float]:
        """Returns the figures for the log, and the seconds that they took; empty if no image is measured.

        Every process has to call this. averaged: within, the model has the weights that are measured.
        """
        if not len(self.images):
            return {}
        start = time.perf_counter()
        with averaged, torch.no_grad():
            figures = self.figures(model)
        return figures | {"holdout_seconds": round(time.perf_counter() - start, 3)}

    def figures(self, model: ParallelModel) -> dict[str, float]:
        """Returns the mean loss, and those by time and by size.

        An image that cannot be read is left out. Empty if none can be read.
        """
        ranks, device = model.ranks, model.ranks.device
        found: list[tuple[int, float]] = []
        # All processes call a sharded network equally often: some measure the last pack once more.
        rounds = math.ceil(len(self.plan) / ranks.num_processes)
        for number in range(ranks.process_index, rounds * ranks.num_processes, ranks.num_processes):
            pack = self.load(min(number, len(self.plan) - 1))
            noise, times, labels = (upload(tensor, device) for tensor in (pack.noise, pack.times, pack.labels))
            context = self.text and self.text.pack(pack.captions)
            losses = self.loss_at(model.module, pack.batch.to(device), noise, times, labels, context).tolist()
            numbered = zip(pack.uses.tolist(), losses, pack.readable, strict=True)
            found += [(use, loss) for use, loss, readable in numbered if readable]
        loss_of = dict(all_gather(found))
        uses = np.array(sorted(loss_of), np.int64)
        if not len(uses):
            return {}
        losses = np.array([loss_of[use] for use in uses])
        groups = {LOSS: np.ones(len(losses), bool)} | self.groups(uses)
        return {name: float(losses[chosen].mean()) for name, chosen in groups.items() if chosen.any()}

    def groups(self, uses: np.ndarray) -> dict[str, np.ndarray]:
        """Returns which of these uses belong to each range of time, and to each class of size if there are several."""
        found = {}
        ranges = (self.times * TIME_BINS).astype(int)
        for number in range(TIME_BINS):
            found[f"{BY_TIME}{number / TIME_BINS:.2f}-{(number + 1) / TIME_BINS:.2f}"] = ranges[uses] == number
        quantiles = np.arange(1, SIZE_CLASSES + 1) / SIZE_CLASSES
        largest = np.unique(np.quantile(self.tokens, quantiles, method="higher"))
        classes = np.searchsorted(largest, self.tokens)
        for number in range(len(largest) if len(largest) > 1 else 0):
            low, high = self.tokens[classes == number].min(), self.tokens[classes == number].max()
            found[f"{BY_SIZE}{low}" + (f"-{high}" if high > low else "")] = classes[uses] == number
        return found

    def load(self, number: int) -> HeldOutPack:
        """Returns a pack of the plan, which stays in memory. Zeros stand in for an image that cannot be read."""
        if number not in self.loaded:
            uses = self.plan[number]
            images, side = self.images[uses], self.dataset.patch_size
            found = [self.load_image(image) for image in images.tolist()]
            blanks = (torch.zeros(self.dataset.channels, *(hw * side).tolist()) for hw in self.dataset.first_hw[images])
            tensors = [blank if tensor is None else tensor for tensor, blank in zip(found, blanks, strict=True)]
            batch = TokenBatch.from_latents(tensors, side)
            self.loaded[number] = HeldOutPack(
                uses,
                [tensor is not None for tensor in found],
                batch,
                torch.cat([self.noise(use, batch.x.shape[1]) for use in uses.tolist()]),
                torch.from_numpy(self.times[uses]).float(),
                torch.from_numpy(self.view.labels[images]),
                [] if self.text is None else [self.view.caption(image) for image in images.tolist()],
            )
        return self.loaded[number]

    def load_image(self, image: int) -> Tensor | None:
        """Returns an image as the first epoch of seed 0 has it, whatever the run's seed; None if it is unreadable."""
        try:
            return self.view.load(image)
        except UnreadableImage as error:
            logger.warning("not measured: %s", error)
            return None

    def noise(self, use: int, channels: int) -> Tensor:
        generator = torch_generator(Purpose.HOLDOUT, int(self.images[use]), int(self.repetition[use]))
        return torch.randn(int(self.tokens[use]), channels, generator=generator)

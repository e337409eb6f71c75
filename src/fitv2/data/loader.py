"""From a data set to training steps: packs of one seeded stream over epochs, resumable at any step without replay."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..tokens import TokenBatch
from .crops import CropEpoch, Crops
from .dataset import Dataset, Epoch, evenly
from .formats import UnreadableImage
from .packing import check_longest, packing_efficiency, plan_packs

logger = logging.getLogger(__name__)
# The images and captions of a pack as they are loaded, and its labels.
Pending = tuple[list[Future[tuple[Tensor, str]]], np.ndarray]
# Images that tell whether a data set is still there, and unreadable ones of a pack that are listed.
PROBES, NAMED = 20, 5


@dataclass(frozen=True)
class DataCursor:
    """A place in the stream: the epoch, and the number of its packs already used."""

    epoch: int = 0
    pack: int = 0


class Pack(NamedTuple):
    """batch: The images. labels: (B,) int64. captions: One per image; none where nobody asked for them."""

    batch: TokenBatch
    labels: Tensor
    captions: list[str]


@dataclass(frozen=True)
class StepData:
    """One optimiser step: this rank's packs with their labels, and what all ranks hold together.

    Attributes:
        packs: Those of this rank.
        readable: The number of images of each pack that could be read; a pack with 0 is a stand-in and must not count.
        unreadable: The number of the other images of this rank.
        images, tokens: As planned, over all packs of all ranks.
        after: The cursor that follows.
        packing_efficiency: The fraction of the token budget that holds real tokens, for the step's last epoch.
    """

    packs: list[Pack]
    readable: list[int]
    unreadable: int
    images: int
    tokens: int
    after: DataCursor
    packing_efficiency: float


class PackLoader:
    """An endless stream of `StepData`. Every rank plans the same packs and loads only its own.

    Args:
        batches_per_step: Packs of one step over all ranks; rank `rank` of `world` takes every world-th.
        pin: Whether to load into memory from which a GPU copies without the host waiting.
        held_out: The indices of the images that are in no step.
        captioned: Whether packs have captions.
    """

    def __init__(
        self,
        dataset: Dataset | Crops,
        max_tokens_per_batch: int,
        batches_per_step: int = 1,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        workers: int = 2,
        pin: bool = False,
        held_out: Sequence[int] | np.ndarray = (),
        captioned: bool = False,
    ) -> None:
        if batches_per_step % world:
            raise UserError(
                f"{batches_per_step} batches a step cannot be shared evenly by {world} processes: set "
                f"training.batches_per_step to a multiple of {world}"
            )
        check_longest(dataset.most_tokens, max_tokens_per_batch)
        self.dataset, self.seed, self.captioned = dataset, seed, captioned
        self.max_tokens_per_batch, self.batches_per_step = max_tokens_per_batch, batches_per_step
        self.rank, self.world, self.workers, self.pin = rank, world, workers, pin
        self.images = np.delete(np.arange(len(dataset)), held_out)
        self._planned: tuple[int, Epoch | CropEpoch, list[np.ndarray], float] | None = None

    def steps(self, cursor: DataCursor) -> Generator[StepData]:
        """Yields the steps from `cursor` on. The next step loads in threads while the current one is used."""
        with ThreadPoolExecutor(self.workers) as pool:
            upcoming = self._submit(pool, cursor)
            while True:
                pending, planned = upcoming
                upcoming = self._submit(pool, planned.after)
                collected = [self._collect(*pack) for pack in pending]
                packs, readable = [pack for pack, _ in collected], [number for _, number in collected]
                unreadable = sum(len(images) for images, _ in pending) - sum(readable)
                yield replace(planned, packs=packs, readable=readable, unreadable=unreadable)

    def _collect(self, images: list[Future[tuple[Tensor, str]]], labels: np.ndarray) -> tuple[Pack, int]:
        """Packs loaded images and labels, shortest images first so that the model need not sort.

        An image that went bad since the scan is left out. Where none is left, one patch of zeros stands in for the
        pack, so that every process still has its packs. Returns the pack, and the number of readable images.
        """
        errors, loaded = [], {}
        for i, future in enumerate(images):
            try:
                loaded[i] = future.result()
            except UnreadableImage as error:
                errors.append(error)
        for error in errors[:NAMED]:
            logger.warning("left out of this step: %s", error)
        if len(errors) > NAMED:
            logger.warning("left out of this step: %d more images", len(errors) - NAMED)
        readable, side = len(loaded), self.dataset.patch_size
        loaded = loaded or {0: (torch.zeros(self.dataset.channels, side, side), "")}
        order = sorted(loaded, key=lambda i: loaded[i][0].numel())
        batch, chosen = TokenBatch.from_latents([loaded[i][0] for i in order], side), torch.from_numpy(labels[order])
        if self.pin:
            batch, chosen = batch.with_x(batch.x.pin_memory()), chosen.pin_memory()
        return Pack(batch, chosen, [loaded[i][1] for i in order] if self.captioned else []), readable

    def _load(self, view: Epoch | CropEpoch, index: int) -> tuple[Tensor, str]:
        return view.load(index), view.caption(index) if self.captioned else ""

    def _submit(self, pool: ThreadPoolExecutor, cursor: DataCursor) -> tuple[list[Pending], StepData]:
        """Begins to load the packs of this rank; returns them, and the step without what is being loaded."""
        pending, images, tokens, real = [], 0, 0, 0.0
        for number in range(self.batches_per_step):
            if cursor.pack >= len(self._plan(cursor.epoch)[1]):  # Resumed with fewer images or larger packs.
                cursor = DataCursor(cursor.epoch + 1)
            view, packs, real = self._plan(cursor.epoch)
            pack = packs[cursor.pack]
            images += len(pack)
            tokens += int(view.hw[pack].prod(1).sum())
            if number % self.world == self.rank:
                pending.append(([pool.submit(self._load, view, int(i)) for i in pack], view.labels[pack]))
            last = cursor.pack + 1 == len(packs)
            cursor = DataCursor(cursor.epoch + 1) if last else DataCursor(cursor.epoch, cursor.pack + 1)
        return pending, StepData([], [], 0, images, tokens, cursor, real)

    def is_gone(self) -> bool:
        """Whether at least half of a few images, spread evenly over the data set, cannot be read now."""
        view, _, _ = self._plan(0 if self._planned is None else self._planned[0])
        few = evenly(len(view.labels), PROBES)
        bad = 0
        for i in few:
            try:
                view.check(int(i))
            except UnreadableImage:
                bad += 1
        return 2 * bad >= len(few)

    def _plan(self, epoch: int) -> tuple[Epoch | CropEpoch, list[np.ndarray], float]:
        if self._planned is None or self._planned[0] != epoch:
            view = self.dataset.epoch(epoch, self.seed)
            lengths = view.hw[self.images].prod(1)
            packs = plan_packs(lengths, self.max_tokens_per_batch, self.seed, epoch)
            efficiency = packing_efficiency(lengths, packs, self.max_tokens_per_batch)
            self._planned = epoch, view, [self.images[pack] for pack in packs], efficiency
        return self._planned[1:]

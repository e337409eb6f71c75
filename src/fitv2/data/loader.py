"""From a data set to training steps: packs of one seeded stream over epochs, resumable at any step without replay."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..tokens import TokenBatch
from .dataset import Dataset, EpochView
from .images import UnreadableImage
from .packing import plan_packs, real_share

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Position:
    """Where the stream stands: the epoch, and the number of its packs already taken."""

    epoch: int = 0
    pack: int = 0


@dataclass(frozen=True)
class Step:
    """One optimiser step: this process's packs with their labels, and what all processes hold together.

    images, tokens: as planned, over all packs of all processes. after: the position that follows. real_share: share of
    the token budget that holds real tokens, for the step's last epoch.
    """

    packs: list[tuple[TokenBatch, Tensor]]
    images: int
    tokens: int
    after: Position
    real_share: float


class PackLoader:
    """An endless stream of `Step`s. Every process plans the same packs and loads only its own.

    packs_per_step: packs of one step over all processes; process `rank` of `world` takes every world-th.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokens_per_pack: int,
        packs_per_step: int = 1,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        workers: int = 2,
    ) -> None:
        if packs_per_step % world:
            raise UserError(
                f"{packs_per_step} packs a step cannot be shared evenly by {world} processes: set "
                f"training.packs_per_step to a multiple of {world}"
            )
        self.dataset = dataset
        self.tokens_per_pack = tokens_per_pack
        self.packs_per_step = packs_per_step
        self.seed = seed
        self.rank, self.world = rank, world
        self.workers = workers
        self._planned: tuple[int, EpochView, list[np.ndarray], float] | None = None

    def steps(self, position: Position) -> Iterator[Step]:
        """The steps from `position` on. The next step loads in threads while the current one is used."""
        with ThreadPoolExecutor(self.workers) as pool:
            upcoming = self._submit(pool, position)
            while True:
                pending, images, tokens, after, share = upcoming
                upcoming = self._submit(pool, after)
                shape = self.dataset.patch_size, self.dataset.channels
                yield Step([collect(*shape, *pack) for pack in pending], images, tokens, after, share)

    def _submit(self, pool: ThreadPoolExecutor, position: Position):
        pending, images, tokens, share = [], 0, 0, 0.0
        for number in range(self.packs_per_step):
            view, packs, share = self._plan(position.epoch)
            if position.pack >= len(packs):  # After a resume with fewer pictures or larger packs than before.
                position = Position(position.epoch + 1)
                view, packs, share = self._plan(position.epoch)
            pack = packs[position.pack]
            images += len(pack)
            tokens += int(view.hw[pack].prod(1).sum())
            if number % self.world == self.rank:
                pending.append(([pool.submit(view.latent, int(i)) for i in pack], view.labels[pack]))
            last = position.pack + 1 == len(packs)
            position = Position(position.epoch + 1) if last else Position(position.epoch, position.pack + 1)
        return pending, images, tokens, position, share

    def _plan(self, epoch: int) -> tuple[EpochView, list[np.ndarray], float]:
        if self._planned is None or self._planned[0] != epoch:
            view = self.dataset.epoch(epoch, self.seed)
            lengths = view.hw.prod(1)
            packs = plan_packs(lengths, self.tokens_per_pack, self.seed, epoch)
            self._planned = epoch, view, packs, real_share(lengths, packs, self.tokens_per_pack)
        return self._planned[1:]


def collect(
    patch_size: int, channels: int, latents: list[Future[Tensor]], labels: np.ndarray
) -> tuple[TokenBatch, Tensor]:
    """Loaded latents and labels as a packed batch, shortest pictures first so that the model need not sort.

    A picture that went bad since the scan is left out and named on the log.
    """
    loaded = [latent_or_none(future) for future in latents]
    if not any(latent is not None for latent in loaded):  # So that every process still has its packs.
        logger.warning("no picture of this pack of %d can be read: one grey patch stands in for it", len(loaded))
        loaded[0] = torch.zeros(channels, patch_size, patch_size)
    order = sorted((i for i, latent in enumerate(loaded) if latent is not None), key=lambda i: loaded[i].numel())
    batch = TokenBatch.from_latents([loaded[i] for i in order], patch_size)
    return batch, torch.from_numpy(labels[order])


def latent_or_none(future: Future[Tensor]) -> Tensor | None:
    try:
        return future.result()
    except UnreadableImage as error:
        logger.warning("left out of this step: %s", error)
        return None

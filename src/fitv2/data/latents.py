"""Prepared pictures as a data set: latents from shards, drawn anew every epoch from their moments."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .images import UnreadableImage
from .prepared import SHARDS, read_dataset, read_index

# Keep the streams of these draws apart from that of the packs, and from each other.
_DRAWS, _NOISE = 1, 2


class NotFiniteLatent(UnreadableImage):
    """A stored latent with NaN or infinity."""


class LatentShards:
    """A folder that `fitv2 prepare` has made, as a `Dataset`; `preparation` says how.

    flip: each epoch takes a picture's mirror image with probability 1/2. ids: (N,) names in the source. autoencoder:
    the one whose latents these are, None for pixels. factor: pixels per latent pixel on each axis. Raises ValueError
    for a folder that is not prepared, not finished or damaged.
    """

    def __init__(self, root: str | Path, flip: bool = True) -> None:
        self.root = Path(root)
        self.preparation, dataset = read_dataset(self.root)
        self.flip = flip and self.preparation.flip
        self.patch_size, self.channels = self.preparation.patch_size, self.preparation.channels
        self.autoencoder, self.factor = self.preparation.autoencoder, self.preparation.factor
        self.class_names: list[str] = dataset["class_names"]
        self.num_classes = len(self.class_names)
        self.shards = [shard["file"] for shard in dataset["shards"]]
        self._read_index(read_index(self.root, dataset))
        self._refuse_not_finite()

    def _read_index(self, lines: Iterable[dict]) -> None:
        """Into plain arrays: as objects, a million pictures would fill gigabytes."""
        number = {name: i for i, name in enumerate(self.shards)}
        self.ids: list[str] = []
        labels, shard, possible, size, offset, crc32 = (array("q") for _ in range(6))
        for line in lines:
            if "skipped" in line:
                continue
            self.ids.append(line["id"])
            labels.append(line["label"])
            shard.append(number[line["shard"]])
            variants = list(line["variants"].values())
            possible.append(len(variants))
            for stored in (variants[0], variants[-1]):  # Of one variant alone, twice the same: all rows are alike.
                size.extend(stored["size"])
                offset.append(stored["offset"])
                crc32.extend((stored["crc32"][0], stored["crc32"][-1]))
        self.labels, self.shard, self.possible = map(np.array, (labels, shard, possible))
        self.hw = np.array(size).reshape(-1, 2, 2) // self.preparation.patch  # per variant, in patches
        self.offset = np.array(offset).reshape(-1, 2)  # per variant
        self.crc32 = np.array(crc32).reshape(-1, 2, 2)  # per variant and flip

    def _refuse_not_finite(self) -> None:
        """Raises UserError for latents of a broken autoencoder, by the first of each shard, before anything trains."""
        for index in np.unique(self.shard, return_index=True)[1].tolist():
            try:
                self.stored(index, 0, 0)
            except NotFiniteLatent as error:
                raise UserError(f"{self.root} cannot be trained on: {error}") from None
            except UnreadableImage:  # Damage is reported where it is met.
                continue

    def __len__(self) -> int:
        return len(self.ids)

    def epoch(self, epoch: int, seed: int) -> LatentEpoch:
        """The pictures as one epoch takes them; what is drawn for picture i depends on (seed, epoch, i) alone."""
        return LatentEpoch(self, epoch, seed)

    def stored(self, index: int, variant: int, flip: int) -> np.ndarray:
        """The numbers of a shard: (channels, height, width) uint8, or (2, channels, h, w) float16. Raises
        UnreadableImage where they are not what was written.
        """
        preparation = self.preparation
        h, w = (self.hw[index, variant] * self.patch_size).tolist()
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
            raise UnreadableImage(
                f"{self.ids[index]} is damaged in {path}; the same fitv2 prepare as before makes that shard anew"
            )
        numbers = np.frombuffer(content, preparation.dtype)
        if preparation.kind == "moments" and not np.isfinite(numbers).all():
            raise NotFiniteLatent(
                f"{self.ids[index]} has latents that are not finite (NaN or infinity) in {path}; fitv2 inspect "
                "--verify lists all of them, and the same fitv2 prepare as before makes them anew"
            )
        return numbers.reshape((-1, h, w) if preparation.kind == "pixels" else (2, -1, h, w))


class LatentEpoch:
    """An `EpochView` of prepared pictures: variant, flip and noise are drawn."""

    def __init__(self, shards: LatentShards, epoch: int, seed: int) -> None:
        draws = np.random.default_rng((seed, epoch, _DRAWS)).random((len(shards), 2))
        self.shards, self.key = shards, (seed, epoch, _NOISE)
        self.labels = shards.labels
        self.variant = (draws[:, 0] * shards.possible).astype(np.int64)
        self.flip = shards.flip & (draws[:, 1] < 0.5)
        self.hw = shards.hw[np.arange(len(shards)), self.variant]

    def latent(self, index: int) -> Tensor:
        """(channels, h, w) float32: pixels in [-1, 1], or a latent drawn from its moments."""
        shards, flip = self.shards, bool(self.flip[index])
        if shards.preparation.kind == "pixels":
            pixels = shards.stored(index, self.variant[index], 0)
            pixels = pixels[:, :, ::-1] if flip else pixels
            return torch.from_numpy(pixels.astype(np.float32, order="C") / 127.5 - 1)
        mean, std = shards.stored(index, self.variant[index], int(flip)).astype(np.float32)
        noise = np.random.default_rng((*self.key, index)).standard_normal(mean.shape, np.float32)
        return torch.from_numpy(mean + std * noise)

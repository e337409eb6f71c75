"""Pictures that a model makes for an evaluation: in shards on disk, resumable, shared by several processes.

A picture depends on its index and the settings alone: shards hold fixed indices, so that neither the number of
processes nor an interruption shows in the bytes. What is there is used for any number of pictures: of a shard with more
its first ones, and to one with fewer the others are added. These are made in other company than at once, so the sums of
their network may be rounded otherwise.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor

from ..atomic import remove_drafts, write_file, write_text
from ..autoencoder import Decoding, KLAutoencoder, Pixels
from ..checkpoints.model_folder import Pretrained
from ..data.images import to_array
from ..distributed.ranks import Ranks, locked_on_rank0, on_rank0
from ..errors import UserError
from ..generate import Sampling, Wish, generate
from ..sheets import to_image
from .pictures import View

SHARD = 250
SETTINGS = "settings.json"

logger = logging.getLogger(__name__)


class GeneratedPictures:
    """The pictures of a folder of shards, in the order of the wishes. shards: NUMBER.npz, each of up to 250 pictures:
    hw (n, 2), and pixels (uint8) one picture after another, each (height, width, channels).
    """

    def __init__(self, name: str, folder: Path, wishes: Sequence[Wish], class_names: list[str], factor: int) -> None:
        self.name, self.folder, self.wishes, self.class_names = name, folder, wishes, class_names
        has_classes = bool(class_names)
        self.labels = np.array([wish.label if has_classes else 0 for wish in wishes], dtype=np.int64)
        self.sizes = np.array([wish.size for wish in wishes]) * factor
        self.shards = [range(start, min(start + SHARD, len(wishes))) for start in range(0, len(wishes), SHARD)]

    def path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.npz"

    @cached_property
    def digest(self) -> str:
        content = hashlib.sha256()
        for image in self.read(range(len(self.wishes)), None, lambda image: image):
            content.update(repr(image.size).encode() + image.tobytes())
        return content.hexdigest()

    def read(self, indices: Sequence[int], mode: Literal["RGB", "L"] | None, view: View) -> Iterator[Image.Image]:
        """mode None: as they were made."""
        wanted = set(indices)
        for number, shard in enumerate(self.shards):
            if wanted.isdisjoint(shard):
                continue
            pictures = self.stored(number)
            if len(pictures) < len(shard):
                raise UserError(f"{self.path(number)} was removed or damaged; run the same command again")
            for index, picture in zip(shard, pictures, strict=True):
                if index in wanted:
                    yield view(picture if mode is None else picture.convert(mode))

    def stored(self, number: int) -> list[Image.Image]:
        """The first pictures of a shard, as many as are there and asked for; of a damaged one none, with a warning."""
        path, wanted = self.path(number), self.sizes[self.shards[number]].tolist()
        if not path.is_file():
            return []
        try:
            with np.load(path) as archive:
                hw, pixels = archive["hw"].tolist(), archive["pixels"]
            parts = np.split(pixels, np.cumsum([h * w * pixels_each(hw, pixels) for h, w in hw])[:-1])
            if any(found != size for found, size in zip(hw, wanted, strict=False)):
                raise UserError("its pictures are of other sizes")
            return [as_image(part, h, w) for part, (h, w) in zip(parts, hw, strict=True)][: len(wanted)]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            logger.warning("%s is damaged, and its pictures are made anew (%s)", path, error)
            return []

    def write_shard(self, number: int, pictures: Sequence[Image.Image]) -> None:
        arrays = [to_array(picture).transpose(1, 2, 0) for picture in pictures]
        hw = np.array([array.shape[:2] for array in arrays], dtype=np.int32)
        pixels = np.concatenate([array.reshape(-1) for array in arrays])

        def write(draft: Path) -> None:
            with draft.open("wb") as file:  # Given a name, numpy would add to it.
                np.savez(file, hw=hw, pixels=pixels)

        write_file(self.path(number), write)


def pixels_each(hw: list[list[int]], pixels: np.ndarray) -> int:
    """Numbers of a pixel, 1 or 3."""
    channels, rest = divmod(len(pixels), sum(h * w for h, w in hw))
    if rest or channels not in (1, 3):
        raise UserError("the pixels are not those of these sizes")
    return channels


def as_image(pixels: np.ndarray, height: int, width: int) -> Image.Image:
    array = pixels.reshape(height, width, -1)
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def make_pictures(
    pictures: GeneratedPictures,
    pretrained: Pretrained,
    codec: Pixels | KLAutoencoder,
    sampling: Sampling,
    settings: dict[str, Any],
    state: Ranks,
    done: Callable[[int], None],
) -> None:
    """Completes the shards, this process its part; returns when all processes have. `done` gets how many are there.

    settings: all that the pictures depend on. Raises ValueError where the folder holds pictures of other settings,
    another run is making some there, or the model makes none.
    """
    with locked_on_rank0(pictures.folder, "a fitv2 evaluate that makes these images"):
        on_rank0(lambda: begin(pictures.folder, settings))
        for number in range(state.process_index, len(pictures.shards), state.num_processes):
            there = pictures.stored(number)
            done(len(there))
            missing = [pictures.wishes[i] for i in pictures.shards[number][len(there) :]]
            if missing:
                pictures.write_shard(number, there + make_wishes(missing, pretrained, codec, sampling, done))
        state.wait_for_everyone()


def make_wishes(
    wishes: Sequence[Wish],
    pretrained: Pretrained,
    codec: Pixels | KLAutoencoder,
    sampling: Sampling,
    done: Callable[[int], None],
) -> list[Image.Image]:
    made: dict[int, Image.Image] = {}

    def keep(index: int, image: Tensor) -> None:
        made[index] = to_image(image)
        done(1)

    with Decoding(codec, keep) as decoding:
        generate(pretrained.model, wishes, sampling, decoding.add)
    return [made[i] for i in range(len(wishes))]


def begin(folder: Path, settings: dict[str, Any]) -> None:
    """The folder for those settings, without what a kill may have left."""
    path, text = folder / SETTINGS, json.dumps(settings, indent=1, sort_keys=True)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise UserError(f"{folder} holds pictures of other settings; choose another --out")
    write_text(path, text)
    remove_drafts(folder)

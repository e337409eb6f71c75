"""A folder of images as a data set, each image at its own aspect ratio.

`contents` says which files are data, and of which class. Each image is decoded once before training, to learn its size
and to find bad files; a cache file makes later starts fast.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..classes import readable_names
from ..errors import UserError
from ..system.device import free_bytes
from .captions import FolderCaptions, captioned_note, has_captions
from .contents import Contents, Labels, read_contents
from .dataset import Dataset
from .decode import Mode, decode
from .formats import UnreadableImage
from .listing import Item
from .preprocessing import (
    Preprocessing,
    all_variants,
    fitted,
    to_array,
    to_tensor,
    variant_sizes,
    why_unfit,
)
from .scan import ScanReport, check_all
from .tables import LISTS

logger = logging.getLogger(__name__)

MOST_EMPTY = 20
# Bytes of resized images that stay in memory: decoding a photograph takes longer than training on it at 96x96.
KEPT_BYTES = 1 << 29
MODES: dict[int, Mode] = {1: "L", 3: "RGB", 4: "RGBA"}
# The alpha of what cannot be seen; drawings are often surrounded by some of it.
FAINT = 8


class ImageFolder(Dataset):
    """The readable images below `root`, in the order of their names, as pixels in [-1, 1].

    Args:
        max_tokens, patch, preprocessing: See `preprocessing`.
        channels: 3 for colour, 1 for grey, 4 for cut-outs: colour with alpha, trimmed to what can be seen.
        flip: Whether each epoch mirrors an image left to right with probability 1/2.
        min_scale: In (0, 1]; each epoch shrinks an image by a linear factor drawn from [min_scale, 1].
        further_tokens: Smaller budgets; each epoch draws one of all for each image.
        cache_file: Where to keep sizes between starts.
        labels_from, labels_option: See `contents.read_contents`.
        contents: The files, if not all below the root count.
        captioned: Whether to look for captions, see `captions`.

    Attributes:
        paths: (N,) names relative to the root.
        sizes: (N, 2) pixels, upright.

    Raises UserError if there is no readable image, if it is not clear what the classes are, or if captions are wanted
    and there are none.
    """

    drawn = ("variant", "flip", "scale")

    def __init__(
        self,
        root: str | Path,
        max_tokens: int,
        patch: int,
        *,
        channels: int = 3,
        preprocessing: Preprocessing = "mixed",
        flip: bool = True,
        min_scale: float = 1.0,
        further_tokens: Sequence[int] = (),
        cache_file: Path | None = None,
        labels_from: Labels = "auto",
        labels_option: str | None = "--set data.labels=",
        contents: Contents | None = None,
        captioned: bool = False,
    ) -> None:
        self.root = Path(root)
        self.patch_size, self.channels, self.flip, self.min_scale = patch, channels, flip, min_scale
        self.kept: dict[tuple[int, int], np.ndarray] = {}
        self.kept_bytes, self.keeping = 0, Lock()
        self.room = min(KEPT_BYTES, free_bytes(torch.device("cpu")) // 8)
        if further_tokens and min_scale < 1:
            raise UserError("data.further_tokens and data.min_scale both shrink images: set one of them")
        self.budget = max_tokens, patch, preprocessing
        self.least = min(max_tokens, *further_tokens) if further_tokens else max_tokens
        self.mode: Mode = MODES[channels]
        if not self.root.is_dir():
            raise UserError(f"{not_a_folder(self.root)}: give the folder that holds the images")
        contents = contents or read_contents(self.root, labels_from, labels_option)
        for note in contents.notes:
            logger.warning("%s: %s", root, note)
        self.class_names = readable_names(contents.class_names)
        self.num_classes = len(self.class_names)
        self._scan(contents.items, cache_file)
        self.texts, self.captioned = None, captioned
        if captioned:
            self.texts = FolderCaptions(self.root, (item.id for item in contents.items), self.paths)
            if not self.texts.count:
                raise UserError(
                    f"the model is conditioned on text, and no image in {root} has a caption: write a metadata.jsonl "
                    'there with a line {"file_name": "cat.jpg", "text": "a black cat"} per image, or a cat.txt beside '
                    "each image"
                )
            logger.info("%s: %s", root, captioned_note(self.texts.count, len(self.paths)))
        sizes, self.possible, self.variants = all_variants(self.sizes, *self.budget, further_tokens)
        self.budgets = 1 + len(further_tokens)
        self.variant_hw = sizes // patch
        for label in np.setdiff1d(np.arange(self.num_classes), self.labels)[:MOST_EMPTY]:
            logger.warning("class %r has no readable image: it cannot be learned", self.class_names[label])

    @cached_property
    def unread_captions(self) -> bool:
        return not self.captioned and has_captions(self.root, self.paths)

    def _scan(self, found: Sequence[Item], cache_file: Path | None) -> None:
        """Sets paths, sizes, labels and the report."""
        kinds = Counter(item.kind for item in found)
        self.report = report = ScanReport(str(self.root), kinds.pop("image", 0))
        listed = ("image", "unopened", "ours")
        report.ignored = {kind: number for kind, number in kinds.items() if kind not in listed}
        report.skipped = [(item.id, item.refused) for item in found if item.refused and item.kind in listed]
        items = [item for item in found if not item.refused]
        names = [item.id for item in items]
        sizes, reasons = check_all(self.root, names, partial(_check, mode=self.mode), 2, cache_file)
        kept = np.delete(np.arange(len(names)), list(reasons))
        short, long = sizes.min(1), sizes.max(1)
        fits = np.ones(len(sizes), bool)
        # Only extreme sizes may be unfit: there may be a million others.
        for place in np.flatnonzero((short < self.patch_size) | (long > self.least * short)).tolist():
            height, width = sizes[place].tolist()
            if reason := why_unfit(height, width, self.least, *self.budget[1:]):
                fits[place], reasons[int(kept[place])] = False, reason
        report.skipped += [(names[i], reasons[i]) for i in sorted(reasons)]
        self.sizes, kept = sizes[fits], kept[fits].tolist()
        self.paths = [names[i] for i in kept]
        self.labels = np.fromiter((items[i].label for i in kept), np.int64, len(kept))
        report.usable = len(kept)
        logger.log(logging.INFO if kept and not report.skipped else logging.WARNING, report.summary())
        if not names:
            raise UserError(
                f"{self.root} holds no image files: put image files (.jpg, .png, .webp) in it, or in one sub-folder "
                "per class"
            )
        if not kept:
            raise UserError(f"no image in {self.root} can be used: replace the files, or give another folder")

    def sized(self, variant: np.ndarray, scale: np.ndarray) -> np.ndarray:
        if self.min_scale == 1:
            return super().sized(variant, scale)
        scales = 1 - (1 - self.min_scale) * scale
        return variant_sizes(self.sizes, *self.budget, scales)[0][np.arange(len(self)), variant] // self.patch_size

    def load(self, index: int, variant: int, hw: tuple[int, int], flip: bool, rng: object) -> Tensor:
        pixels = self.kept.get((index, variant))
        if pixels is None:
            size = hw[0] * self.patch_size, hw[1] * self.patch_size
            pixels = to_array(fitted(self.read(index), size, self.variants[variant]))
            self._keep((index, variant), pixels)
        return to_tensor(pixels[:, :, ::-1] if flip else pixels)

    def _keep(self, key: tuple[int, int], pixels: np.ndarray) -> None:
        """Keeps a resized image in memory as long as there is room. Scaled at random, hardly any comes twice."""
        with self.keeping:
            if self.min_scale == 1 and key not in self.kept and self.kept_bytes + pixels.nbytes <= self.room:
                self.kept[key] = pixels
                self.kept_bytes += pixels.nbytes

    def check(self, index: int, *drawn: object) -> None:
        self.read(index)

    def captions(self, index: int, *drawn: object) -> tuple[str, ...]:
        return () if self.texts is None else self.texts[self.paths[index]]

    def read(self, index: int) -> Image.Image:
        """Decodes an image whole. Raises UnreadableImage if it cannot be read any more, or has another size."""
        name, size = self.paths[index], tuple(self.sizes[index].tolist())
        try:
            image = _read(self.root / name, self.mode)
        except UnreadableImage as error:
            raise UnreadableImage(f"{name} could be read at the start and now cannot: {error}") from error
        if (image.height, image.width) != size:
            raise UnreadableImage(f"{name} was {size} pixels at the start and now is {(image.height, image.width)}")
        return image

    def identity(self) -> tuple[list[str], list[np.ndarray], Path]:
        return self.paths, [self.labels, self.sizes], self.root


def not_a_folder(root: Path) -> str:
    """Says what is there instead of a folder of images, and which command takes it."""
    if not root.exists():
        return f"there is no folder {root}"
    read = " (fitv2 prepare reads it)" if root.suffix.lower() in (*LISTS, ".tar") else ""
    return f"{root} is a file and not a folder{read}"


def trim(image: Image.Image) -> Image.Image:
    """Cuts off what cannot be seen around an RGBA image. Raises UnreadableImage if nothing of it can be seen."""
    box = image.getchannel("A").point([255 * (alpha > FAINT) for alpha in range(256)]).getbbox()
    if box is None:
        raise UnreadableImage("transparent everywhere")
    return image.crop(box)


def _read(path: Path, mode: Mode) -> Image.Image:
    image = decode(path, mode)
    return trim(image) if mode == "RGBA" else image


def _check(path: Path, mode: Mode) -> list[int] | str:
    """[height, width] of an image file, or why it cannot be used."""
    if not path.is_file():  # A broken link, or a pipe, on which opening would wait for ever.
        return "not a file"
    try:
        image = _read(path, mode)
    except UnreadableImage as error:
        return str(error)
    return [image.height, image.width]

"""A folder of images as a data set, each image at its own aspect ratio.

`contents` says which files are data, and of which class. Each image is decoded once before training, to learn its size
and to find bad files; a cache file makes later starts fast.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..atomic import write_text
from ..errors import UserError
from .contents import Contents, Labels, read_contents
from .images import Preprocessing, UnreadableImage, decode, fit_size, prepare, target_size, to_array, variants
from .scan import check_all

logger = logging.getLogger(__name__)

MOST_EMPTY = 20
# Keeps the stream of these draws apart from that of the packs.
_DRAWS = 1


@dataclass
class ScanReport:
    """What became of each file under the root.

    found: files with the extension of a picture; each is usable or in `skipped`, (path relative to the root, reason).
    ignored: number of the other files by extension ("hidden" for names that begin with a dot).
    """

    root: str
    found: int = 0
    usable: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)

    @property
    def skipped_by_reason(self) -> dict[str, int]:
        """Number of skipped files by the kind of the reason, most frequent first."""
        return dict(Counter(reason.partition(":")[0] for _, reason in self.skipped).most_common())

    def summary(self, most: int = 20) -> str:
        """A few lines of text: the counts, and the first `most` skipped files with their reasons."""
        lines = [f"{self.root}: {self.found} picture files, {self.usable} usable, {len(self.skipped)} skipped"]
        lines += [f"  {count} skipped: {reason}" for reason, count in self.skipped_by_reason.items()]
        lines += [f"    {path}: {reason}" for path, reason in self.skipped[:most]]
        if len(self.skipped) > most:
            lines.append(f"    and {len(self.skipped) - most} more")
        if self.ignored:
            counts = ", ".join(f"{count} {extension}" for extension, count in sorted(self.ignored.items()))
            lines.append(f"  ignored, not a picture extension: {counts}")
        # File names may hold bytes that no terminal can show.
        return "\n".join(lines).encode(errors="replace").decode()

    def write(self, path: str | Path) -> None:
        """The whole report as JSON."""
        content = asdict(self) | {"skipped_by_reason": self.skipped_by_reason}
        write_text(Path(path), json.dumps(content, indent=1))


class ImageFolder:
    """The readable pictures under `root`, in the order of their names, as a `Dataset` of pixels in [-1, 1].

    patch: pixels that a token's side covers. channels: 3 for colour, 1 for grey. preprocessing: see `images.variants`.
    flip: each epoch mirrors a picture left to right with probability 1/2. min_scale in (0, 1]: each epoch shrinks a
    picture by a linear factor drawn from [min_scale, 1]. cache_file: where to keep sizes between starts; an entry
    counts while the file's size and time are the same. paths, sizes: (N,) relative names, (N, 2) pixels, upright.
    labels_from, labels_option: see `contents.read_contents`. Raises UserError when there is no folder, no readable
    picture in it, or no telling what its classes are.
    """

    autoencoder = None

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
        cache_file: Path | None = None,
        labels_from: Labels = "auto",
        labels_option: str | None = "--set data.labels=",
    ) -> None:
        if channels not in (1, 3):
            raise UserError(f"pictures have 1 or 3 channels, not {channels}")
        if not 0 < min_scale <= 1:
            raise UserError(f"min_scale must be above 0 and at most 1, not {min_scale}")
        # Both raise for settings that fit no picture, before the long scan.
        fit_size(1, 1, max_tokens, patch)
        variants(1, 1, max_tokens, patch, preprocessing)
        self.root = Path(root)
        self.max_tokens, self.patch_size, self.channels = max_tokens, patch, channels
        self.preprocessing, self.flip, self.min_scale = preprocessing, flip, min_scale
        self.mode: Literal["RGB", "L"] = "RGB" if channels == 3 else "L"
        contents = _contents(self.root, labels_from, labels_option)
        self.class_names, self.num_classes = contents.class_names, len(contents.class_names)
        self.report, found = _scan(self.root, contents, self.mode, cache_file)
        self.paths = list(found)
        self.sizes = np.array(list(found.values()), dtype=np.int64)
        label_of = {item.id: item.label for item in contents.items}
        self.labels = np.array([label_of[name] for name in self.paths], dtype=np.int64)
        for label in sorted(set(range(self.num_classes)) - set(self.labels.tolist()))[:MOST_EMPTY]:
            logger.warning("class %r has no readable picture: it cannot be learned", self.class_names[label])

    def __len__(self) -> int:
        return len(self.paths)

    def epoch(self, epoch: int, seed: int) -> FolderEpoch:
        """The pictures as one epoch takes them; what is drawn for picture i depends on (seed, epoch, i) alone."""
        return FolderEpoch(self, np.random.default_rng((seed, epoch, _DRAWS)).random((len(self), 3)))


class FolderEpoch:
    """An `EpochView` of a folder. draws: (N, 3) in [0, 1), for variant, flip and scale."""

    def __init__(self, folder: ImageFolder, draws: np.ndarray) -> None:
        self.folder = folder
        self.labels = folder.labels
        self.variant = []
        for size, draw in zip(folder.sizes.tolist(), draws[:, 0].tolist(), strict=True):
            possible = variants(*size, folder.max_tokens, folder.patch_size, folder.preprocessing)
            self.variant.append(possible[int(draw * len(possible))])
        self.flip = folder.flip & (draws[:, 1] < 0.5)
        self.scale = 1 - (1 - folder.min_scale) * draws[:, 2]
        sizes = [
            target_size(*size, folder.max_tokens, folder.patch_size, variant, scale)
            for size, variant, scale in zip(folder.sizes.tolist(), self.variant, self.scale.tolist(), strict=True)
        ]
        self.hw = np.array(sizes, dtype=np.int64) // folder.patch_size

    def latent(self, index: int) -> Tensor:
        """(channels, height, width) float32 in [-1, 1]; raises UnreadableImage if the file changed since the scan."""
        folder = self.folder
        name, size = folder.paths[index], tuple(folder.sizes[index].tolist())
        try:
            image = decode(folder.root / name, folder.mode)
        except UnreadableImage as error:
            raise UnreadableImage(f"{name} could be read at the start and now cannot: {error}") from error
        if (image.height, image.width) != size:
            raise UnreadableImage(f"{name} was {size} pixels at the start and now is {(image.height, image.width)}")
        image = prepare(image, folder.max_tokens, folder.patch_size, self.variant[index], float(self.scale[index]))
        if self.flip[index]:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return _to_latent(image)


def _to_latent(image: Image.Image) -> Tensor:
    """8-bit RGB or grey to (3 or 1, height, width) float32, black -1, white 1."""
    # In numpy: torch would wake its thread pool for each of these small steps, which costs more than the steps.
    return torch.from_numpy(to_array(image).astype(np.float32) / 127.5 - 1)


def _contents(root: Path, labels: Labels, option: str | None) -> Contents:
    if root.is_file():
        raise UserError(
            f"{root} is a file, and no folder of pictures; of lists and archives fitv2 prepare makes a folder that can "
            "be trained on"
        )
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: give the folder that holds the pictures")
    contents = read_contents(root, labels, option)
    for note in contents.notes:
        logger.warning("%s: %s", root, note)
    return contents


def _scan(
    root: Path, contents: Contents, mode: str, cache_file: Path | None
) -> tuple[ScanReport, dict[str, list[int]]]:
    """The report, and name to [height, width] of each usable picture."""
    report, ignored = ScanReport(str(root)), Counter()
    names = [item.id for item in contents.items if item.refused is None]
    for file, item in zip(contents.files, contents.items, strict=True):
        if file.kind in ("picture", "unopened", "ours"):
            report.found += file.kind == "picture"
            report.skipped += [(item.id, item.refused)] if item.refused else []
        else:
            ignored[file.kind] += 1
    report.ignored = dict(ignored)
    sizes = {}
    for name, outcome in check_all(root, names, lambda path: _check(path, mode), cache_file).items():
        if isinstance(outcome, str):
            report.skipped.append((name, outcome))
        else:
            sizes[name] = outcome
    report.usable = len(sizes)
    logger.log(logging.WARNING if report.skipped else logging.INFO, report.summary())
    if not names:
        hint = "put picture files (.jpg, .png, .webp) in it, or in one sub-folder per class"
        raise UserError(f"no picture files: {hint}\n{report.summary()}")
    if not sizes:
        raise UserError(f"no picture can be read: replace the files or give another folder\n{report.summary()}")
    return report, sizes


def _check(path: Path, mode: str) -> list[int] | str:
    if not path.is_file():  # A broken link, or a pipe, on which opening would wait for ever.
        return "not a file"
    try:
        image = decode(path, mode)
    except UnreadableImage as error:
        return str(error)
    return [image.height, image.width]

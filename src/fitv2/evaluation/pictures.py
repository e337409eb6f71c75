"""Sets of pictures to evaluate, or to compare with: a folder, prepared pixels, an archive, garments."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from ..classes import readable_names
from ..data.fashion import SPLITS, Fashion, bundled, full
from ..data.folder import ImageFolder
from ..data.formats import EXTENSIONS
from ..data.images import MAX_PIXELS, UnreadableImage, decode
from ..data.official import budgets
from ..data.prepared import is_prepared, read_dataset
from ..data.scan import in_threads
from ..data.shards import LatentShards
from ..errors import UserError
from ..messages import counted, shortened
from ..randomness import Purpose, numpy_generator
from ..sample_list import SAMPLES_LIST, SHEET, read_list
from .archives import read_pictures, read_shape

FASHION = "fashion"
# How the reasons begin for which files that fitv2 made are no data.
MADE = "made by fitv2"
WORKERS = 4
# Pictures that threads may be ahead of the network, and pixels of these: 400 MB in colour.
AHEAD, AHEAD_PIXELS = 64, 1 << 27
NO_LATENTS = (
    "{} holds latents, which no extractor can see: name the folder of the pictures that they were made of, or prepare "
    "these with --autoencoder pixels"
)
View = Callable[[Image.Image], Image.Image]


class Pictures(Protocol):
    """name: as the user called it. digest: SHA-256 of the contents. sizes: (N, 2), height and width in pixels.
    labels: (N,) int64, of class_names, or all 0 where there are none.
    """

    name: str
    class_names: list[str]
    labels: np.ndarray
    sizes: np.ndarray

    @property
    def digest(self) -> str: ...

    def read(self, indices: Sequence[int], mode: Literal["RGB", "L"], view: View) -> Iterator[Image.Image]:
        """Views of those pictures, by ascending index, in order. Raises ValueError where one cannot be read."""


class FolderPictures:
    """Images in files below a folder. paths: relative to it. notes: which files there are left out, in sentences."""

    def __init__(
        self, root: Path, paths: list[str], sizes: np.ndarray, labels: np.ndarray, class_names: list[str]
    ) -> None:
        self.root, self.name, self.paths, self.sizes, self.labels = root, str(root), paths, sizes, labels
        self.class_names = readable_names(class_names)
        self.notes: list[str] = []

    @classmethod
    def below(cls, root: Path, cache_file: Path | None) -> FolderPictures:
        """All readable images; sub-folders are the classes. What fitv2 made of other images is left out.

        cache_file: where sizes are kept between starts. What cannot be read is warned about.
        """
        # A budget that every size fits: only the list of images counts here.
        folder = ImageFolder(root, max_tokens=MAX_PIXELS, patch=1, cache_file=cache_file, labels_option=None)
        pictures = cls(root, folder.paths, folder.sizes, folder.labels, folder.class_names)
        left = [name for name, reason in folder.report.skipped if reason.startswith(MADE)]
        if left:
            pictures.notes.append(f"left out of {root}, as made by fitv2: {shortened(left)}")
        return pictures

    @classmethod
    def listed(cls, root: Path) -> FolderPictures:
        """The images that the last `fitv2 sample` has made in a folder, as its list says.

        Raises UserError where one is missing.
        """
        images = read_list(root / SAMPLES_LIST)
        paths = [image.file for image in images]
        if missing := [path for path in paths if not (root / path).is_file()]:
            raise UserError(
                f"{root / SAMPLES_LIST} lists images that are not there ({shortened(missing)}): make the samples "
                "again, or remove the list to evaluate all images that are there"
            )
        classes = {image.label: image.name for image in images if image.name is not None}
        numbers = {label: number for number, label in enumerate(sorted(classes))}
        labels = np.array([numbers.get(image.label, 0) for image in images], dtype=np.int64)
        sizes = np.array([image.size for image in images], dtype=np.int64)
        pictures = cls(root, paths, sizes, labels, [classes[label] for label in sorted(classes)])
        others = {path.name for path in root.iterdir() if path.suffix.lower() in EXTENSIONS} - {*paths}
        if others := sorted(others - {SHEET}):
            number = counted(len(others), "other image")
            pictures.notes.append(f"left out of {root}, {number} not of the last fitv2 sample: {shortened(others)}")
        return pictures

    @cached_property
    def digest(self) -> str:
        """Over names, which hold the classes, and bytes."""
        content = hashlib.sha256()
        hashes = in_threads(WORKERS, lambda name: file_digest(self.root / name), self.paths)
        for name, sha256 in zip(self.paths, hashes, strict=True):
            content.update(f"{name}\n{sha256}\n".encode(errors="surrogateescape"))
        return content.hexdigest()

    def read(self, indices: Sequence[int], mode: Literal["RGB", "L"], view: View) -> Iterator[Image.Image]:
        def seen(index: int) -> Image.Image:
            path, size = self.root / self.paths[index], tuple(self.sizes[index].tolist())
            try:
                image = decode(path, mode)
            except UnreadableImage as error:
                raise UserError(f"{path} cannot be read: {error}") from error
            if (image.height, image.width) != size:
                raise UserError(f"{path} has {image.height}x{image.width} pixels, and not {size[0]}x{size[1]} any more")
            return view(image)

        for block in blocks(indices, self.sizes.prod(1)):
            yield from in_threads(WORKERS, seen, block)


class ArchivePictures:
    """`arr_0` of an .npz file, all of one size and without classes."""

    def __init__(self, path: Path) -> None:
        number, height, width, _ = read_shape(path)
        self.path, self.name, self.class_names = path, str(path), []
        self.labels = np.zeros(number, np.int64)
        self.sizes = np.tile(np.array([height, width]), (number, 1))

    @cached_property
    def digest(self) -> str:
        return file_digest(self.path)

    def read(self, indices: Sequence[int], mode: Literal["RGB", "L"], view: View) -> Iterator[Image.Image]:
        return (view(image.convert(mode)) for image in read_pictures(self.path, indices))


class PreparedPictures:
    """What `fitv2 prepare` has stored as pixels: every picture fitted to the budget, whole where there is a crop too.

    Raises ValueError for latents, which only a model of them can see.
    """

    def __init__(self, root: Path) -> None:
        self.shards = LatentShards(root, flip=False)
        if self.shards.preparation.kind != "pixels":
            raise UserError(NO_LATENTS.format(root))
        if not len(self.shards):
            raise UserError(f"{root} holds no picture: all files of its source were skipped")
        self.name, self.class_names = str(root), readable_names(self.shards.class_names)
        self.labels, self.sizes = self.shards.labels, self.shards.hw[:, 0] * self.shards.preparation.patch

    @cached_property
    def digest(self) -> str:
        """Over the index, where each picture has hashes of its file and of its pixels, and what that does not say."""
        preparation, dataset = read_dataset(self.shards.root)
        about = preparation.digest, dataset["index_sha256"], *self.class_names
        return hashlib.sha256("\n".join(about).encode()).hexdigest()

    def read(self, indices: Sequence[int], mode: Literal["RGB", "L"], view: View) -> Iterator[Image.Image]:
        for index in indices:
            pixels = np.ascontiguousarray(self.shards.stored(index, 0, 0).transpose(1, 2, 0))
            yield view(Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert(mode))


class Garments:
    """Garments in memory, each in its own size."""

    def __init__(self, name: str, garments: Fashion) -> None:
        self.name, self.garments, self.class_names = name, garments.pictures, garments.class_names
        self.labels, self.sizes = garments.labels, garments.hw * garments.patch_size

    @cached_property
    def digest(self) -> str:
        content = hashlib.sha256(self.labels.tobytes() + self.sizes.tobytes())
        for picture in self.garments:
            content.update(picture.tobytes())
        return content.hexdigest()

    def read(self, indices: Sequence[int], mode: Literal["RGB", "L"], view: View) -> Iterator[Image.Image]:
        return (view(Image.fromarray(np.ascontiguousarray(self.garments[i])).convert(mode)) for i in indices)


def open_pictures(name: str, cache: Path) -> Pictures:
    """A folder of pictures or of prepared pixels, an .npz archive, or garments. Raises ValueError where there is none.

    cache: a folder in which sizes of pictures are kept.
    """
    path = Path(name)
    if is_garments(name):
        return open_garments(name)
    if path.suffix == ".npz":
        return ArchivePictures(path)
    if path.is_file():
        raise UserError(
            f"{path} is no folder of pictures and no archive (.npz); of lists, WebDataset archives and data sets of "
            "Hugging Face, fitv2 prepare --autoencoder pixels makes a folder that can be named"
        )
    if not path.is_dir():
        raise UserError(f"there is no folder, archive (.npz) or set of pictures {name!r}; the built-in set is fashion")
    if is_prepared(path):
        return PreparedPictures(path)
    if budgets(path):
        raise UserError(NO_LATENTS.format(path))
    if (path / SAMPLES_LIST).is_file():
        return FolderPictures.listed(path)
    scanned = hashlib.sha256(str(path.resolve()).encode(errors="surrogateescape")).hexdigest()
    return FolderPictures.below(path, cache / f"scan-{scanned[:16]}.json")


def is_garments(name: str) -> bool:
    """Whether it names the bundled garments, or all of a split."""
    return name == FASHION or name.startswith(f"{FASHION}:")


def open_garments(name: str) -> Garments:
    """fashion, the bundled 10 000; fashion:train, all 60 000; fashion:test, the 10 000 on which nothing is trained; the
    last two, from the files of their authors, also with their FOLDER: fashion:train:FOLDER.
    """
    if name == FASHION:
        return Garments(name, bundled())
    split, folder = split_of(name)
    return Garments(name, full(split, folder))


def split_of(name: str) -> tuple[str, Path | None]:
    """Of fashion:SPLIT or fashion:SPLIT:FOLDER. Raises ValueError for another split."""
    _, split, folder = (*name.split(":", 2), "")[:3]
    if split not in SPLITS:
        raise UserError(
            f"there are no garments {name!r}: fashion are the bundled 10000, fashion:train all 60000, fashion:test the "
            "10000 of the test; behind them, as in fashion:train:FOLDER, the folder of the four files of Fashion-MNIST"
        )
    return split, Path(folder) if folder else None


def blocks(indices: Sequence[int], pixels: np.ndarray) -> Iterator[Sequence[int]]:
    """Consecutive indices, of as many pictures as may be held at once; pixels: (N,) of each picture."""
    start = held = 0
    for end, index in enumerate(indices):
        if end > start and (end - start == AHEAD or held + pixels[index] > AHEAD_PIXELS):
            yield indices[start:end]
            start, held = end, 0
        held += pixels[index]
    yield indices[start:]


def in_turn(labels: np.ndarray, number: int) -> np.ndarray:
    """Ascending indices of `number` pictures, or all: one of each class, another of each, and so on.

    Which, a fixed seed draws: the first by name are often alike. A larger number takes the same ones and more.
    """
    drawn = numpy_generator(Purpose.SPLITS, 0).permutation(len(labels))
    order = drawn[np.argsort(labels[drawn], kind="stable")]
    counts = np.unique(labels, return_counts=True)[1]
    turns = np.concatenate([np.arange(count) for count in counts])
    return np.sort(order[np.argsort(turns, kind="stable")][:number])


def file_digest(path: Path | Traversable) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

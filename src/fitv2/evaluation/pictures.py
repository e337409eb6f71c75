"""Sets of pictures to evaluate, or to compare with: a folder, an archive, the bundled garments."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from ..classes import readable_names
from ..data.fashion import bundled
from ..data.folder import ImageFolder
from ..data.images import UnreadableImage, decode
from ..data.scan import in_threads
from .archives import read_pictures, read_shape

FASHION = "fashion"
WORKERS = 4
# Pictures that threads may be ahead of the network, each as large as its view.
AHEAD = 64
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
    """The readable pictures below a folder; its sub-folders are the classes. What cannot be read is warned about.

    cache_file: where sizes are kept between starts.
    """

    def __init__(self, root: Path, cache_file: Path | None) -> None:
        self.folder = ImageFolder(root, max_tokens=1, patch=1, cache_file=cache_file)
        self.name, self.class_names = str(root), readable_names(self.folder.class_names)
        self.labels, self.sizes = self.folder.labels, self.folder.sizes

    @cached_property
    def digest(self) -> str:
        """Over names, which hold the classes, and bytes."""
        content, root = hashlib.sha256(), self.folder.root
        hashes = in_threads(WORKERS, lambda name: file_digest(root / name), self.folder.paths)
        for name, sha256 in zip(self.folder.paths, hashes, strict=True):
            content.update(f"{name}\n{sha256}\n".encode(errors="surrogateescape"))
        return content.hexdigest()

    def read(self, indices: Sequence[int], mode: Literal["RGB", "L"], view: View) -> Iterator[Image.Image]:
        def seen(index: int) -> Image.Image:
            path = self.folder.root / self.folder.paths[index]
            try:
                return view(decode(path, mode))
            except UnreadableImage as error:
                raise ValueError(f"{path} could be read at the start and now cannot: {error}") from error

        for start in range(0, len(indices), AHEAD):
            yield from in_threads(WORKERS, seen, indices[start : start + AHEAD])


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


class BundledGarments:
    """The 10 000 training garments that ship with the package, each in its own size."""

    name = FASHION

    def __init__(self) -> None:
        garments = bundled()
        self.garments, self.class_names, self.labels = garments.pictures, garments.class_names, garments.labels
        self.sizes = garments.hw * garments.patch_size

    @cached_property
    def digest(self) -> str:
        content = hashlib.sha256(self.labels.tobytes() + self.sizes.tobytes())
        for picture in self.garments:
            content.update(picture.tobytes())
        return content.hexdigest()

    def read(self, indices: Sequence[int], mode: Literal["RGB", "L"], view: View) -> Iterator[Image.Image]:
        return (view(Image.fromarray(np.ascontiguousarray(self.garments[i])).convert(mode)) for i in indices)


def open_pictures(name: str, cache: Path) -> Pictures:
    """A folder of pictures, an .npz archive, or "fashion". Raises ValueError where there is none.

    cache: a folder in which sizes of pictures are kept.
    """
    path = Path(name)
    if name == FASHION:
        return BundledGarments()
    if path.suffix == ".npz":
        return ArchivePictures(path)
    if not path.is_dir():
        raise ValueError(f"there is no folder, archive (.npz) or set of pictures {name!r}; the built-in set is fashion")
    scanned = hashlib.sha256(str(path.resolve()).encode(errors="surrogateescape")).hexdigest()
    return FolderPictures(path, cache / f"scan-{scanned[:16]}.json")


def in_turn(labels: np.ndarray, number: int) -> np.ndarray:
    """Ascending indices of `number` pictures, or all: one of each class, another of each, and so on.

    Which, a fixed seed draws: the first by name are often alike. A larger number takes the same ones and more.
    """
    drawn = np.random.default_rng(0).permutation(len(labels))
    order = drawn[np.argsort(labels[drawn], kind="stable")]
    counts = np.unique(labels, return_counts=True)[1]
    turns = np.concatenate([np.arange(count) for count in counts])
    return np.sort(order[np.argsort(turns, kind="stable")][:number])


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Sets of images to evaluate or to compare with: folders, prepared images, archives, the built-in data set.

An `Images` object knows its sizes and labels at once, and reads its images in order.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Literal

import numpy as np
from PIL import Image

from ..classes import readable_names
from ..data.canvases import Canvases
from ..data.decode import MAX_PIXELS, decode
from ..data.emoji import EMOJI, cutouts, is_emoji, read_named
from ..data.fashion import SPLITS, bundled, full
from ..data.folder import ImageFolder
from ..data.formats import EXTENSIONS, UnreadableImage
from ..data.latent_shards import LatentShards
from ..data.official import is_official
from ..data.prepared import is_prepared, read_dataset
from ..data.scan import in_threads
from ..errors import UserError
from ..messages import advised, counted, shortened
from ..sample_list import SAMPLES_LIST, SHEET, read_list
from ..system.atomic import write_file
from ..system.hashes import file_digest

FASHION = "fashion"
# What the recipe `emoji-study` trains on, and the epochs whose images are a reference: each has other canvases.
EMOJI_TOKENS, EMOJI_PATCH, EMOJI_SCALE, EMOJI_EPOCHS = 64, 8, 0.35, 4
ARCHIVE = "arr_0"
# How the reason begins why a file that fitv2 made is not data.
MADE = "made by fitv2"
WORKERS = 4
# Images that threads may be ahead of the network, and their pixels: 400 MB in colour.
AHEAD, AHEAD_PIXELS = 64, 1 << 27
NO_LATENTS = (
    "{} holds latents, which no extractor can see: give the folder of the images that they were made of, or prepare "
    "these with --autoencoder pixels"
)
Mode = Literal["RGB", "L"]
View = Callable[[Image.Image], Image.Image]


class Images:
    """N images of known sizes.

    `sizes` are (N, 2) int64, height and width in pixels; `labels` are (N,) int64, indices of `class_names`, which is
    empty without classes; `notes` say in sentences what is unusual about the set.
    """

    def __init__(self, name: str, sizes: np.ndarray, labels: np.ndarray, class_names: Sequence[str] = ()) -> None:
        self.name, self.sizes, self.labels, self.class_names = name, sizes, labels, list(class_names)
        self.notes: list[str] = []

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the contents."""
        raise NotImplementedError

    def read(self, indices: Sequence[int], mode: Mode, view: View) -> Iterator[Image.Image]:
        """Yields views of those images, by ascending index and in order. Raises UserError for an unreadable one."""
        for index in indices:
            yield view(as_image(self.pixels(index)).convert(mode))

    def pixels(self, index: int) -> np.ndarray:
        """Returns an image for `read`, (h, w) or (h, w, 1 or 3) uint8."""
        raise NotImplementedError

    def notes_on(self, chosen: np.ndarray) -> list[str]:
        """Returns notes on those images as samples."""
        return self.notes


def as_image(pixels: np.ndarray) -> Image.Image:
    """Returns (h, w) or (h, w, 1 or 3) uint8 as an image."""
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels))


class FolderImages(Images):
    """Images in files below a folder; `paths` are relative to it."""

    def __init__(
        self, root: Path, paths: list[str], sizes: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
    ) -> None:
        super().__init__(str(root), sizes, labels, readable_names(list(class_names)))
        self.root, self.paths = root, paths

    @classmethod
    def below(cls, root: Path, cache_file: Path | None) -> FolderImages:
        """Returns all readable images, with sub-folders as classes, except contact sheets and other files of fitv2."""
        # A budget that every size fits: only the list of images matters here.
        folder = ImageFolder(root, max_tokens=MAX_PIXELS, patch=1, cache_file=cache_file, labels_option=None)
        images = cls(root, folder.paths, folder.sizes, folder.labels, folder.class_names)
        skipped = folder.report.skipped if folder.report else []
        if left := [name for name, reason in skipped if reason.startswith(MADE)]:
            images.notes.append(f"left out of {root}, as made by fitv2: {shortened(left)}")
        return images

    @classmethod
    def listed(cls, root: Path) -> FolderImages:
        """Returns the images of the last `fitv2 sample` in a folder. Raises UserError if one is missing."""
        images = read_list(root / SAMPLES_LIST)
        paths = [image.file for image in images]
        if missing := [path for path in paths if not (root / path).is_file()]:
            raise UserError(
                f"{root / SAMPLES_LIST} lists images that are not there ({shortened(missing)}): make the samples "
                "again, or remove the list to evaluate all images that are there"
            )
        classes = dict(sorted((image.label or 0, image.name) for image in images if image.name is not None))
        numbers = {label: number for number, label in enumerate(classes)}
        labels = np.array([numbers.get(image.label or 0, 0) for image in images], dtype=np.int64)
        found = cls(root, paths, np.array([image.size for image in images]), labels, [*classes.values()])
        if others := {path.name for path in root.iterdir() if path.suffix.lower() in EXTENSIONS} - {*paths, SHEET}:
            number = counted(len(others), "other image")
            found.notes.append(
                f"left out of {root}, {number} not of the last fitv2 sample: {shortened(sorted(others))}"
            )
        return found

    @cached_property
    def digest(self) -> str:
        """SHA-256 of names, which include the classes, and bytes."""
        content = hashlib.sha256()
        hashes = in_threads(WORKERS, lambda name: file_digest(self.root / name), self.paths)
        for name, sha256 in zip(self.paths, hashes, strict=True):
            content.update(f"{name}\n{sha256}\n".encode(errors="surrogateescape"))
        return content.hexdigest()

    def read(self, indices: Sequence[int], mode: Mode, view: View) -> Iterator[Image.Image]:
        def seen(index: int) -> Image.Image:
            path, (height, width) = self.root / self.paths[index], self.sizes[index].tolist()
            try:
                image = decode(path, mode)
            except UnreadableImage as error:
                raise UserError(f"{path} cannot be read: {error}") from error
            if (image.height, image.width) != (height, width):
                raise UserError(f"{path} has {image.height}x{image.width} pixels now, and had {height}x{width}")
            return view(image)

        # A block begins at each multiple of the most pixels; an image counts as a 64th of that at least.
        costs = self.sizes[list(indices)].prod(1).clip(AHEAD_PIXELS // AHEAD)
        ends = np.flatnonzero(np.diff(costs.cumsum() // AHEAD_PIXELS, prepend=0))
        for block in np.split(np.asarray(indices), ends):
            yield from in_threads(WORKERS, seen, block.tolist())

    def notes_on(self, chosen: np.ndarray) -> list[str]:
        """Adds a note on JPEG files: extractors see the losses (arXiv 2104.11222), which no model need have caused."""
        lossy = sum(self.paths[i].lower().endswith((".jpg", ".jpeg", ".jfif")) for i in chosen.tolist())
        told = [f"{lossy} of {len(chosen)} samples are JPEG files, whose losses count as theirs"] if lossy else []
        return [*told, *self.notes]


class ArchiveImages(Images):
    """`arr_0` of an .npz file, (N, H, W, 1 or 3) uint8, without classes. One image at a time is in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self.opened() as (_, (number, height, width, _)):
            super().__init__(str(path), np.tile(np.array([height, width]), (number, 1)), np.zeros(number, np.int64))

    @cached_property
    def digest(self) -> str:
        return file_digest(self.path)

    def read(self, indices: Sequence[int], mode: Mode, view: View) -> Iterator[Image.Image]:
        with self.opened() as (file, (_, *shape)):
            length, wanted = int(np.prod(shape)), set(indices)
            for index in range(max(indices, default=-1) + 1):
                content = file.read(length)
                if len(content) < length:
                    raise UserError(f"{self.path} ends before its images do: copy or make it again")
                if index in wanted:
                    yield view(as_image(np.frombuffer(content, np.uint8).reshape(shape)).convert(mode))

    @contextmanager
    def opened(self) -> Iterator[tuple[IO[bytes], tuple[int, int, int, int]]]:
        """Yields the array's bytes, and its shape."""
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{ARCHIVE}.npy") as file:
                shape, fortran, dtype = readers[np.lib.format.read_magic(file)](file)
                if len(shape) != 4 or shape[3] not in (1, 3) or dtype != np.uint8 or fortran or not all(shape):
                    raise UserError(f"{ARCHIVE} of {self.path} is {dtype} {shape}, not uint8 (N, H, W, 3)")
                yield file, shape
        except FileNotFoundError:
            raise UserError(f"there is no file {self.path}") from None
        except UserError:
            raise
        except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, ValueError) as error:
            raise UserError(f"{self.path} is not an archive of images ({ARCHIVE}), or damaged: {error}") from None


def write_archive(path: Path, images: Images, chosen: Sequence[int]) -> None:
    """Writes chosen images of one size as `arr_0` (N, H, W, 3) uint8; ADM's evaluator needs RGB, also for grey."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(chosen), *images.sizes[chosen[0]].tolist(), 3)}

    def write(draft: Path) -> None:
        with zipfile.ZipFile(draft, "w") as archive, archive.open(f"{ARCHIVE}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for image in images.read(chosen, "RGB", lambda image: image):
                file.write(np.asarray(image).tobytes())

    write_file(path, write)


class PreparedImages(Images):
    """Pixels that `fitv2 prepare` stored: each image resized to the budget, not its crop."""

    def __init__(self, root: Path) -> None:
        self.shards = shards = LatentShards(root, flip=False)
        if shards.preparation.kind != "pixels":
            raise UserError(NO_LATENTS.format(root))
        if not len(shards):
            raise UserError(f"{root} holds no image: all files of its source were skipped")
        sizes = shards.variant_hw[:, 0] * shards.preparation.patch
        super().__init__(str(root), sizes, shards.labels, readable_names(shards.class_names))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of preparation, classes and index, which has hashes of each image's file and pixels."""
        preparation, dataset = read_dataset(self.shards.root)
        about = preparation.digest, dataset["index_sha256"], *self.class_names
        return hashlib.sha256("\n".join(about).encode()).hexdigest()

    def pixels(self, index: int) -> np.ndarray:
        return self.shards.stored(index, 0, 0).transpose(1, 2, 0)


class ArrayImages(Images):
    """Images in memory, (h, w) or (h, w, 3) uint8 each, with labels (N,)."""

    def __init__(self, name: str, arrays: Sequence[np.ndarray], labels: np.ndarray, class_names: Sequence[str]) -> None:
        sizes = np.array([array.shape[:2] for array in arrays], dtype=np.int64)
        super().__init__(name, sizes, labels, class_names)
        self.arrays = arrays

    @cached_property
    def digest(self) -> str:
        content = hashlib.sha256(self.labels.tobytes() + self.sizes.tobytes())
        for array in self.arrays:
            content.update(array.tobytes())
        return content.hexdigest()

    def pixels(self, index: int) -> np.ndarray:
        return self.arrays[index]


class EmojiImages(Images):
    """Images of one drawing each, as the recipe `emoji-study` has them: bundled drawings, or those of a folder."""

    def __init__(self, name: str) -> None:
        canvases = Canvases(cutouts(read_named(name)), EMOJI_TOKENS, EMOJI_PATCH, min_scale=EMOJI_SCALE)
        self.epochs = epochs = [canvases.epoch(number, seed=0) for number in range(EMOJI_EPOCHS)]
        single = [np.flatnonzero(epoch.labels < canvases.num_classes) for epoch in epochs]
        self.places = [(epoch, index) for epoch, own in zip(epochs, single, strict=True) for index in own.tolist()]
        sizes = np.concatenate([epoch.hw[own] for epoch, own in zip(epochs, single, strict=True)]) * EMOJI_PATCH
        labels = np.concatenate([epoch.labels[own] for epoch, own in zip(epochs, single, strict=True)])
        super().__init__(name, sizes, labels, canvases.class_names)
        self.canvases = canvases

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(f"{EMOJI_EPOCHS} {self.canvases.digest()}".encode()).hexdigest()

    def pixels(self, index: int) -> np.ndarray:
        epoch, place = self.places[index]
        return ((epoch.load(place) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


def open_images(name: str, cache: Path) -> Images:
    """Returns a folder of images or of prepared pixels, an .npz archive, or a built-in data set.

    Those are emoji (the bundled drawings) or emoji:FOLDER, fashion (the bundled 10 000 garments), and fashion:train or
    fashion:test (all 60 000 and 10 000), also with the folder of the authors' files, as in fashion:train:FOLDER. Sizes
    of images are kept in the folder `cache`. Raises UserError if there is nothing of that name, or no images in it.
    """
    path = Path(name)
    if is_fashion(name):
        fashion = bundled() if name == FASHION else full(*split_of(name))
        return ArrayImages(name, fashion.images, fashion.labels, fashion.class_names)
    if is_emoji(name):
        return EmojiImages(name)
    if path.suffix == ".npz":
        return ArchiveImages(path)
    if path.is_file():
        raise UserError(
            f"{path} is neither a folder of images nor an archive (.npz); of lists, WebDataset archives and data sets "
            "of Hugging Face, fitv2 prepare --autoencoder pixels makes a folder that can be given here"
        )
    if not path.is_dir():
        advice = advised(name, (FASHION, EMOJI), "the built-in data sets are fashion and emoji")
        raise UserError(f"there is no folder, archive (.npz) or data set {name!r}{advice}")
    if is_prepared(path):
        return PreparedImages(path)
    if is_official(path):
        raise UserError(NO_LATENTS.format(path))
    if (path / SAMPLES_LIST).is_file():
        return FolderImages.listed(path)
    scanned = hashlib.sha256(str(path.resolve()).encode(errors="surrogateescape")).hexdigest()
    return FolderImages.below(path, cache / f"scan-{scanned[:16]}.json")


def is_fashion(name: str) -> bool:
    """Returns whether it is a name of the garments."""
    return name == FASHION or name.startswith(f"{FASHION}:")


def split_of(name: str) -> tuple[str, Path | None]:
    """Returns split and folder of fashion:SPLIT or fashion:SPLIT:FOLDER. Raises UserError for another split."""
    _, split, folder = (*name.split(":", 2), "")[:3]
    if split not in SPLITS:
        raise UserError(
            f"there is no data set {name!r}: fashion is the bundled 10,000 images, fashion:train all 60,000 and "
            "fashion:test the 10,000 of the test; fashion:train:FOLDER names the folder of the authors' four files"
        )
    return split, Path(folder) if folder else None

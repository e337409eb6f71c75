"""The built-in real set: Fashion-MNIST photographs, each trimmed to its garment's own box.

Trousers become tall and shoes wide: 29 sizes from 28x8 to 4x28 pixels, multiples of 4. Pixels are the latents: one
channel in [-1, 1], patch 4, so 16 numbers a token and at most 49 tokens; a smaller budget resizes or crops as for any
folder (Algorithm 1). Fashion-MNIST is (c) 2017 Zalando SE, MIT licence. A class-balanced 10 000 of its training split
ships with the package.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..randomness import Purpose, numpy_generator
from .images import Preprocessing, prepare, resize, target_size, variants

PATCH = 4
SIDE = 28
# The budget under which every garment keeps its size.
WHOLE = (SIDE // PATCH) ** 2
# Fainter pixels are paper and shadow: with this threshold the boxes hug the garment and still contain all of it.
THRESHOLD = 32
CLASS_NAMES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
# SHA-256 of the unpacked files: distributions compress them anew, so the archives themselves differ.
SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
# Names of the splits, and how those of their files begin.
SPLITS = {"train": "train", "test": "t10k"}
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


class Fashion:
    """Trimmed garments in memory; a `Dataset` (see `fitv2.data.dataset`).

    pictures: uint8 (h, w) arrays with sides divisible by 4, bright garment on black. min_scale below 1 draws each
    picture at a random linear scale in [min_scale, 1] every epoch, its sides rounded to the patch, and cropped as
    `images.resize` does where that would stretch it. max_tokens, preprocessing: the budget, and what each epoch draws
    of the `images.variants` under it; "resize" and "crop" make all epochs alike, as a reference for evaluation has to
    be. sizes: (N, 2) pixels of whole garments. Raises ValueError for min_scale with anything but whole garments, and
    for a preprocessing that is not known.
    """

    patch_size = PATCH
    channels = 1
    num_classes = len(CLASS_NAMES)
    class_names = CLASS_NAMES
    autoencoder = None

    def __init__(
        self,
        pictures: Sequence[np.ndarray],
        labels: np.ndarray,
        min_scale: float = 1.0,
        max_tokens: int = WHOLE,
        preprocessing: Preprocessing = "resize",
    ) -> None:
        if min_scale < 1 and (max_tokens < WHOLE or preprocessing == "crop"):
            raise UserError(
                f"data.min_scale={min_scale} shrinks whole garments: set data.max_tokens={WHOLE} and "
                "data.preprocessing=resize, or data.min_scale=1"
            )
        self.pictures = pictures
        self.labels = np.asarray(labels, dtype=np.int64)
        self.sizes = np.array([picture.shape for picture in pictures], dtype=np.int64)
        self.hw = self.sizes // PATCH
        self.min_scale, self.max_tokens = min_scale, max_tokens
        # Sizes are few: what each becomes is worked out once, (S, 2) of two equally probable variants.
        sizes, self.size_index = np.unique(self.hw * PATCH, axis=0, return_inverse=True)
        possible = [variants(*size, max_tokens, PATCH, preprocessing) for size in sizes.tolist()]
        pairs = [(names[0], names[-1]) for names in possible]
        self.fitted_hw = (
            np.array(
                [
                    [target_size(*size, max_tokens, PATCH, variant) for variant in pair]
                    for size, pair in zip(sizes.tolist(), pairs, strict=True)
                ],
                dtype=np.int64,
            )
            // PATCH
        )
        self.is_crop = np.array(pairs) == "crop"

    def __len__(self) -> int:
        return len(self.pictures)

    def epoch(self, epoch: int, seed: int) -> FashionEpoch:
        """The set with the sizes and variants drawn for this epoch."""
        if self.min_scale < 1:
            scale = numpy_generator(Purpose.VARIANTS, seed, epoch).uniform(self.min_scale, 1, len(self))
            return FashionEpoch(self, np.maximum(np.rint(self.hw * scale[:, None]), 1).astype(np.int64))
        second = numpy_generator(Purpose.VARIANTS, seed, epoch).random(len(self)) >= 0.5
        drawn = self.size_index.ravel(), second.astype(np.int64)
        return FashionEpoch(self, self.fitted_hw[drawn], self.is_crop[drawn])


class FashionEpoch:
    """One epoch's view: hw (N, 2) in patches, labels (N,), and the latent of each picture at that size.

    cropped: (N,) whether that is its square; None where pictures are at random scales.
    """

    def __init__(self, garments: Fashion, hw: np.ndarray, cropped: np.ndarray | None = None) -> None:
        self.garments = garments
        self.hw, self.cropped = hw, cropped
        self.labels = garments.labels

    def latent(self, index: int) -> Tensor:
        """(1, h, w) float32 in [-1, 1]."""
        image = Image.fromarray(self.garments.pictures[index])
        if self.cropped is None:
            image = resize(image, tuple((self.hw[index] * PATCH).tolist()))
        else:
            image = prepare(image, self.garments.max_tokens, PATCH, "crop" if self.cropped[index] else "resize")
        return to_latent(np.asarray(image))


def to_latent(picture: np.ndarray) -> Tensor:
    """uint8 (h, w) to float32 (1, h, w) in [-1, 1]."""
    return torch.from_numpy(np.array(picture)).float()[None] / 127.5 - 1


def bundled(min_scale: float = 1.0, max_tokens: int = WHOLE, preprocessing: Preprocessing = "resize") -> Fashion:
    """The 10 000 training pictures that ship with the package, 1 000 of each class; settings as of `Fashion`."""
    with files("fitv2.data").joinpath("fashion-10k.npz").open("rb") as file, np.load(file) as archive:
        hw, pixels, labels = archive["hw"].astype(np.int64), archive["pixels"], archive["labels"]
    parts = np.split(pixels, np.cumsum(hw.prod(1))[:-1])
    pictures = [part.reshape(size) for part, size in zip(parts, hw, strict=True)]
    return Fashion(pictures, labels, min_scale, max_tokens, preprocessing)


def full(
    split: str,
    folder: Path | None = None,
    min_scale: float = 1.0,
    max_tokens: int = WHOLE,
    preprocessing: Preprocessing = "resize",
) -> Fashion:
    """All 60 000 pictures of the split "train" or the 10 000 of "test", from the upstream files, trimmed.

    The other settings are those of `Fashion`.
    """
    images, labels = read_split(split, folder)
    return Fashion([trim(image) for image in images], labels, min_scale, max_tokens, preprocessing)


def trim(image: np.ndarray) -> np.ndarray:
    """The garment's box in a uint8 (28, 28) picture, each side grown to a multiple of 4."""
    bright = image > THRESHOLD
    rows, columns = (grown_span(bright.any(axis)) for axis in (1, 0))
    return image[rows, columns]


def grown_span(bright: np.ndarray) -> slice:
    """From the first to the last bright line, grown evenly to a multiple of the patch inside the picture."""
    lines = np.flatnonzero(bright) if bright.any() else np.arange(len(bright))
    length = int(lines[-1] - lines[0] + 1)
    grown = -(-length // PATCH) * PATCH
    start = min(max(int(lines[0]) - (grown - length) // 2, 0), len(bright) - grown)
    return slice(start, start + grown)


def read_split(split: str, folder: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Untrimmed (N, 28, 28) uint8 pictures and (N,) uint8 labels of "train" or "test".

    Raises ValueError when the files are not there or are not the upstream ones.
    """
    images, labels = map(read_checked, split_files(split, folder))
    return images[16:].reshape(-1, SIDE, SIDE), labels[8:]


def split_files(split: str, folder: Path | None = None) -> tuple[Path, Path]:
    """The upstream files of pictures and of labels."""
    folder, prefix = folder or DEBIAN_FOLDER, SPLITS[split]
    return folder / f"{prefix}-images-idx3-ubyte.gz", folder / f"{prefix}-labels-idx1-ubyte.gz"


def read_checked(path: Path) -> np.ndarray:
    """The bytes of one upstream file, its checksum verified."""
    if not path.is_file():
        raise UserError(
            f"{path} is not there: install the Debian package dataset-fashion-mnist, or put the four files of "
            "Fashion-MNIST into a folder and name it (data.folder of a recipe, fashion:train:FOLDER to evaluate); the "
            "bundled 10 000 pictures need neither"
        )
    try:
        content = gzip.decompress(path.read_bytes())
    except (EOFError, zlib.error, gzip.BadGzipFile):
        content = b""
    if hashlib.sha256(content).hexdigest() != SHA256[path.name]:
        raise UserError(f"{path} does not hold the Fashion-MNIST of its authors: it is damaged or another file")
    return np.frombuffer(content, np.uint8)

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
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import UserError
from .dataset import Dataset
from .preprocessing import Preprocessing, all_variants, fitted, to_array, to_tensor

PATCH = 4
SIDE = 28
# The budget under which every garment keeps its size.
WHOLE = (SIDE // PATCH) ** 2
# Fainter pixels are paper and shadow: with this threshold the boxes hug the garment and still contain all of it.
THRESHOLD = 32
CLASS_NAMES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
# SHA-256 of the unpacked files: distributions recompress them, so the archives themselves differ.
SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
# Names of the splits, and how those of their files begin.
SPLITS = {"train": "train", "test": "t10k"}
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


class Fashion(Dataset):
    """Trimmed garments in memory: uint8 (h, w) arrays with sides divisible by 4, bright on black; labels (N,).

    Args:
        min_scale: Below 1, each epoch draws each garment at a random linear scale in [min_scale, 1], its sides rounded
            to the patch, and cropped as `preprocessing.resize` does where that would stretch it.
        max_tokens, preprocessing: The budget, and what each epoch draws of the `preprocessing.variants` under it.
            "resize" and "crop" make all epochs alike, as a reference for evaluation has to be.
        further_tokens: Smaller budgets; each epoch draws one of all for each image.

    `sizes` (N, 2) are in pixels of whole garments, `hw` in patches. Raises UserError if min_scale is below 1 with
    anything but whole garments.
    """

    patch_size, channels = PATCH, 1
    class_names, num_classes = CLASS_NAMES, len(CLASS_NAMES)

    def __init__(
        self,
        images: Sequence[np.ndarray],
        labels: np.ndarray,
        min_scale: float = 1.0,
        max_tokens: int = WHOLE,
        preprocessing: Preprocessing = "resize",
        further_tokens: Sequence[int] = (),
    ) -> None:
        if min_scale < 1 and (max_tokens < WHOLE or preprocessing == "crop" or further_tokens):
            raise UserError(
                f"data.min_scale={min_scale} shrinks whole garments: set data.max_tokens={WHOLE}, no "
                "data.further_tokens and data.preprocessing=resize, or data.min_scale=1"
            )
        self.images, self.labels = images, np.asarray(labels, dtype=np.int64)
        self.sizes = np.array([image.shape for image in images], dtype=np.int64)
        self.hw = self.sizes // PATCH
        self.min_scale, self.drawn = min_scale, ("scale",) if min_scale < 1 else ("variant",)
        found = all_variants(self.sizes, max_tokens, PATCH, preprocessing, further_tokens)
        sizes, self.possible, self.variants = found
        self.budgets = 1 + len(further_tokens)
        self.variant_hw = sizes // PATCH

    def sized(self, variant: np.ndarray, scale: np.ndarray) -> np.ndarray:
        if self.min_scale == 1:
            return super().sized(variant, scale)
        scales = self.min_scale + (1 - self.min_scale) * scale
        return np.maximum(np.rint(self.hw * scales[:, None]), 1).astype(np.int64)

    def load(self, index: int, variant: int, hw: tuple[int, int], flip: bool, rng: object) -> Tensor:
        size, image = (hw[0] * PATCH, hw[1] * PATCH), Image.fromarray(self.images[index])
        return to_tensor(to_array(fitted(image, size, self.variants[variant])))


def bundled(*settings: Any, **more: Any) -> Fashion:
    """Returns the 10 000 training images that ship with the package, 1 000 of each class; settings: of `Fashion`."""
    with files("fitv2.data").joinpath("fashion-10k.npz").open("rb") as file, np.load(file) as archive:
        hw, pixels, labels = archive["hw"].astype(np.int64), archive["pixels"], archive["labels"]
    parts = np.split(pixels, np.cumsum(hw.prod(1))[:-1])
    return Fashion([part.reshape(size) for part, size in zip(parts, hw, strict=True)], labels, *settings, **more)


def full(split: str, folder: Path | None = None, *settings: Any, **more: Any) -> Fashion:
    """Returns all 60 000 images of the split "train" or the 10 000 of "test", from the upstream files, trimmed."""
    images, labels = map(read_checked, split_files(split, folder))
    garments = [trim(image) for image in images[16:].reshape(-1, SIDE, SIDE)]
    return Fashion(garments, labels[8:], *settings, **more)


def trim(image: np.ndarray) -> np.ndarray:
    """Cuts the garment's box from a uint8 (28, 28) image, each side grown evenly to a multiple of 4."""
    spans = []
    for axis in (1, 0):
        lines = np.flatnonzero((image > THRESHOLD).any(axis))
        first, last = (int(lines[0]), int(lines[-1])) if len(lines) else (0, SIDE - 1)
        grown = -(-(last + 1 - first) // PATCH) * PATCH
        start = min(max(first - (grown - (last + 1 - first)) // 2, 0), SIDE - grown)
        spans.append(slice(start, start + grown))
    return image[tuple(spans)]


def split_files(split: str, folder: Path | None = None) -> tuple[Path, Path]:
    """Returns the paths of the upstream files of images and of labels."""
    folder, prefix = folder or DEBIAN_FOLDER, SPLITS[split]
    return folder / f"{prefix}-images-idx3-ubyte.gz", folder / f"{prefix}-labels-idx1-ubyte.gz"


def read_checked(path: Path) -> np.ndarray:
    """Reads one upstream file. Raises UserError if it is not there, or not the upstream one."""
    if not path.is_file():
        raise UserError(
            f"{path} is not there: install the Debian package dataset-fashion-mnist, or name a folder that holds the "
            "four files of Fashion-MNIST (data.folder of a recipe, fashion:train:FOLDER to evaluate)"
        )
    try:
        content = gzip.decompress(path.read_bytes())
    except (EOFError, zlib.error, gzip.BadGzipFile):
        content = b""
    if hashlib.sha256(content).hexdigest() != SHA256[path.name]:
        raise UserError(f"{path} does not hold the Fashion-MNIST of its authors: it is damaged or another file")
    return np.frombuffer(content, np.uint8)

"""The two sides of an evaluation: samples, and a reference, which has real images, statistics of them, or both."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from ..data.fashion import CLASS_NAMES, split_files
from ..errors import UserError
from ..images.sheets import contact_sheet, save_sheet
from ..messages import counted, shortened
from ..randomness import Purpose, numpy_generator
from ..system.hashes import file_digest
from .extractors import EfficientNetExtractor, GarmentExtractor, InceptionExtractor
from .image_sets import ARCHIVE, FASHION, ArchiveImages, Images, is_fashion, open_images, split_of
from .inception import POOLED, SPATIAL
from .metrics import Statistics, check_statistics
from .results import CLASSES, LABELS, class_counts

# Samples on a sheet, and the most pixels of a side.
SHOWN, LARGEST = 32, 256
TEST_STATISTICS = files("fitv2.evaluation").joinpath("fashion-test-statistics.safetensors")
# How the names of a mean and a covariance end in ADM's archives, and their numbers of Inception's features.
STATISTICS = {"": POOLED, "_s": SPATIAL}


# Samples


@dataclass(frozen=True)
class Samples:
    """Images to evaluate.

    Attributes:
        images: The set from which some are chosen.
        chosen: (n,), ascending indices.
        size: Their (height, width); None for many sizes.
        called: The size as text.
        about: Where they come from, for the stamp; "labels" and "seeds" at least.
        notes: On their files, in sentences.
    """

    images: Images
    chosen: np.ndarray
    size: tuple[int, int] | None
    called: str
    about: dict[str, Any] = field(repr=False)
    notes: Sequence[str] = ()


def given_samples(images: Images, sizes: Collection[tuple[int, int]], number: int | None) -> Iterator[Samples]:
    """Yields the samples of each (height, width) among images that exist already; without sizes, all of them.

    `number` is that of samples of each size, with classes in turn; None for all. Raises UserError if a size has no
    images, or fewer.
    """
    found = np.unique(images.sizes, axis=0)
    for size in sizes or [tuple(found[0].tolist()) if len(found) == 1 else None]:
        chosen = np.arange(len(images)) if size is None else np.flatnonzero((images.sizes == size).all(1))
        called = "own" if size is None else f"{size[0]}x{size[1]}"
        if not len(chosen):
            told = shortened([f"{height}x{width}" for height, width in found.tolist()], 10)
            raise UserError(f"{images.name} has no image of {called}; its sizes are {told}")
        if number is not None and number > len(chosen):
            raise UserError(f"{images.name} has {counted(len(chosen), 'image')} of the size {called}, not {number}")
        if number is not None:
            chosen = chosen[balanced_subset(images.labels[chosen], number)]
        about = {"samples": images.name, "samples_sha256": images.digest, "seeds": None}
        about[LABELS] = class_counts(images.labels[chosen], len(images.class_names))
        about[CLASSES] = images.class_names or None
        yield Samples(images, chosen, size, called, about, images.notes_on(chosen))


def write_sheet(path: Path, samples: Samples) -> None:
    """Writes the first samples with their classes and sizes, large ones reduced."""
    images, chosen = samples.images, samples.chosen[:SHOWN].tolist()
    captions = []
    for index in chosen:
        name = images.class_names[images.labels[index]][:20] if images.class_names else ""
        captions.append("{} {}x{}".format(name, *images.sizes[index]).strip())

    def reduced(image: Image.Image) -> Image.Image:
        image.thumbnail((LARGEST, LARGEST))
        return image

    save_sheet(contact_sheet(list(images.read(chosen, "RGB", reduced)), captions), path)


# References


@dataclass(frozen=True)
class GivenStatistics:
    """Statistics of pooled and spatial features of uncropped images that come with a reference.

    recognised: Fraction in [0, 1] of each class, by name, that the extractor recognises; None if unknown.
    """

    extractor: str
    statistics: Statistics
    spatial: Statistics | None = None
    recognised: dict[str, float] | None = None


@dataclass(frozen=True)
class Reference:
    """Images, statistics, or both, with which samples are compared.

    source: A file that stands for the whole reference; None if the images do.
    """

    name: str
    images: Images | None
    given: GivenStatistics | None = None
    source: Path | Traversable | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the contents."""
        if self.source is not None:
            return file_digest(self.source)
        assert self.images is not None
        return self.images.digest


def open_reference(name: str, cache: Path) -> Reference:
    """Returns what `open_images` opens, fashion:test, or an archive as ADM has it.

    Such an .npz file holds images (arr_0), statistics (mu and sigma, also mu_s and sigma_s of spatial features), or
    both. Raises UserError if there is nothing of that name, or it is damaged.
    """
    if is_fashion(name) and name != FASHION and split_of(name)[0] == "test":
        return fashion_test(name)
    path = Path(name)
    if path.suffix != ".npz":
        return Reference(name, open_images(name, cache))
    try:
        zipfile.ZipFile(path).close()  # For anything else, numpy does not return an archive.
        with np.load(path) as archive:
            arrays = {key: archive[key] for key in ("mu", "sigma", "mu_s", "sigma_s") if key in archive}
            has_images = ARCHIVE in archive
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is not an archive of a reference, or damaged: {error}") from None
    if not arrays and not has_images:
        raise UserError(f"{path} holds neither images ({ARCHIVE}) nor statistics (mu, sigma)")
    given = None
    if arrays:
        spatial = statistics_in(arrays, "_s", path) if arrays.keys() & {"mu_s", "sigma_s"} else None
        given = GivenStatistics(InceptionExtractor.name, statistics_in(arrays, "", path), spatial)
    return Reference(name, ArchiveImages(path) if has_images else None, given, source=path)


def fashion_test(name: str) -> Reference:
    """Returns the shipped statistics of the test images, with the images where their files are.

    Both are the same reference, since only the authors' files are accepted.
    """
    with as_file(TEST_STATISTICS) as path, safe_open(path, "pt") as file:
        fractions = json.loads(file.metadata()["recognised_per_class"])
        mean, covariance, count = (file.get_tensor(key) for key in ("mean", "covariance", "count"))
    recognised = dict(zip(CLASS_NAMES, fractions, strict=True))
    given = GivenStatistics(GarmentExtractor.name, Statistics(mean, covariance, int(count)), recognised=recognised)
    split, folder = split_of(name)
    there = folder is not None or all(path.is_file() for path in split_files(split))
    return Reference(name, open_images(name, Path()) if there else None, given, source=TEST_STATISTICS)


def statistics_in(arrays: dict[str, np.ndarray], ending: str, path: Path) -> Statistics:
    """Returns the statistics in the arrays whose names have that ending, in float64.

    The covariance becomes the mean of its two halves, which rounding has made unequal. Raises UserError for anything
    but statistics of Inception's features with some spread.
    """
    names, width = (f"mu{ending}", f"sigma{ending}"), STATISTICS[ending]
    try:
        if any(name not in arrays or arrays[name].dtype.kind != "f" for name in names):
            raise UserError("both must be there and hold real numbers")
        mean, covariance = (torch.from_numpy(arrays[name].astype(np.float64)) for name in names)
        check_statistics(Statistics(mean, covariance, 0))
        if len(mean) != width or not covariance.any():
            raise UserError(f"the covariance is zero, or they are of {len(mean)} features and not of {width}")
    except UserError as error:
        raise UserError(f"{path}: {' and '.join(names)} cannot be used as statistics: {error}") from None
    return Statistics(mean, (covariance + covariance.T) / 2, count=0)


def default_extractor(reference: str, inception_weights: Path | None) -> str:
    """Returns the name of the FID's network if its weights are given, the garments' for garments, else EfficientNet."""
    if inception_weights is not None:
        return InceptionExtractor.name
    return GarmentExtractor.name if is_fashion(reference) else EfficientNetExtractor.name


# Subsets


def balanced_subset(labels: np.ndarray, number: int) -> np.ndarray:
    """Returns ascending indices of `number` images, or all: one of each class, another of each, and so on.

    A fixed seed draws which: the first by name are often alike. A larger number gives the same images and more.
    """
    drawn = numpy_generator(Purpose.SPLITS, 0).permutation(len(labels))
    order = drawn[np.argsort(labels[drawn], kind="stable")]
    turns = np.concatenate([np.arange(count) for count in np.unique(labels, return_counts=True)[1]])
    return np.sort(order[np.argsort(turns, kind="stable")][:number])


def disjoint_subsets(labels: Tensor, wanted: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Returns indices of two equal random sets of images with the classes `labels` (N,).

    Each set has the classes `wanted` (M,), but at most half of the images of a class. Both have the same frequencies of
    classes, since different ones would be a distance of their own.
    """
    order = torch.from_numpy(numpy_generator(Purpose.SPLITS, seed).permutation(len(labels)))
    first, second = [], []
    for label, number in zip(*wanted.unique(return_counts=True), strict=True):
        of_class = order[labels[order] == label]
        number = min(int(number), len(of_class) // 2)
        first.append(of_class[:number])
        second.append(of_class[number : 2 * number])
    return torch.cat(first), torch.cat(second)


def matching_subset(labels: Tensor, wanted: Tensor, seed: int) -> Tensor:
    """Returns random indices of images of the classes `labels` (N,), as many of each class as `wanted` (M,) has."""
    order = torch.from_numpy(numpy_generator(Purpose.SPLITS, seed, 1).permutation(len(labels)))
    classes, counts = wanted.unique(return_counts=True)
    return torch.cat([order[labels[order] == label][:count] for label, count in zip(classes, counts, strict=True)])

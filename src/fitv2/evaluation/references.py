"""What samples are compared with: real images, statistics that somebody has already taken of them, or both."""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from ..data.fashion import CLASS_NAMES, split_files
from ..errors import UserError
from .extractors import EfficientNetExtractor, GarmentExtractor, InceptionExtractor
from .inception import POOLED, SPATIAL
from .metrics import Statistics, check_statistics
from .sources import (
    ARCHIVE,
    FASHION,
    ArchiveImages,
    Images,
    fashion_images,
    file_digest,
    is_fashion,
    open_images,
    split_of,
)

TEST_STATISTICS = files("fitv2.evaluation").joinpath("fashion-test-statistics.safetensors")
# Names of a mean and a covariance in ADM's archives, and their numbers of Inception's features.
STATISTICS = {("mu", "sigma"): POOLED, ("mu_s", "sigma_s"): SPATIAL}


@dataclass(frozen=True)
class Known:
    """Statistics of an extractor's pooled and spatial features that come with a reference, of images as they are.

    recognised: Fraction in [0, 1] of each class, by name, that the extractor recognises; None if unknown.
    """

    extractor: str
    statistics: Statistics
    spatial: Statistics | None = None
    recognised: dict[str, float] | None = None


@dataclass(frozen=True)
class Reference:
    """What samples are compared with: images, statistics, or both.

    source: A file that stands for the whole reference; None if the images do.
    """

    name: str
    images: Images | None
    known: Known | None = None
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
    known, has_images = read_known(path)
    if known is None and not has_images:
        raise UserError(f"{path} holds neither images ({ARCHIVE}) nor statistics (mu, sigma)")
    return Reference(name, ArchiveImages(path) if has_images else None, known, source=path)


def fashion_test(name: str) -> Reference:
    """Returns the shipped statistics of the test images, with the images where their files are.

    Both are the same reference, since only the authors' files are accepted.
    """
    with as_file(TEST_STATISTICS) as path, safe_open(path, "pt") as file:
        metadata, statistics = file.metadata(), Statistics.load(path)
    fractions = json.loads(metadata["recognised_per_class"])
    known = Known(GarmentExtractor.name, statistics, recognised=dict(zip(CLASS_NAMES, fractions, strict=True)))
    split, folder = split_of(name)
    there = folder is not None or all(path.is_file() for path in split_files(split))
    return Reference(name, fashion_images(name) if there else None, known, source=TEST_STATISTICS)


def read_known(path: Path) -> tuple[Known | None, bool]:
    """Returns ADM's statistics of an archive, and whether it holds images. Raises UserError for damaged files."""
    try:
        with np.load(path) as archive:
            arrays = {name: archive[name] for pair in STATISTICS for name in pair if name in archive}
            has_images = ARCHIVE in archive
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is not an archive of a reference, or damaged: {error}") from None
    pooled, spatial = (known_statistics(arrays, *pair, width, path) for pair, width in STATISTICS.items())
    if pooled is None and spatial is not None:
        raise UserError(f"{path} has statistics of spatial features (mu_s, sigma_s), and none of the others")
    return (None if pooled is None else Known(InceptionExtractor.name, pooled, spatial)), has_images


def known_statistics(
    arrays: dict[str, np.ndarray], mean: str, covariance: str, width: int, path: Path
) -> Statistics | None:
    """Returns the statistics in the arrays of those names, in float64; None if both are missing.

    The covariance becomes the mean of its two halves, which rounding has made unequal. Raises UserError if they are not
    statistics of `width` features with some spread.
    """
    if mean not in arrays and covariance not in arrays:
        return None
    try:
        if mean not in arrays or covariance not in arrays:
            raise UserError("one of both is missing")
        if {arrays[name].dtype.kind for name in (mean, covariance)} != {"f"}:
            raise UserError("they are not real numbers")
        own_mean, half = (torch.from_numpy(arrays[name].astype(np.float64)) for name in (mean, covariance))
        check_statistics(own_mean, half)
        if len(own_mean) != width:
            raise UserError(f"they are of {len(own_mean)} features, and {InceptionExtractor.name} has {width}")
        if not half.any():
            raise UserError("the covariance is zero: they are of one image, or of a network that sees nothing")
    except UserError as error:
        raise UserError(f"{path}: {mean} and {covariance} cannot be used as statistics: {error}") from None
    return Statistics(own_mean, (half + half.T) / 2, count=0)


def default_extractor(reference: str, inception_weights: Path | None) -> str:
    """Returns the name of the FID's network if its weights are given, the garments' for garments, else EfficientNet."""
    if inception_weights is not None:
        return InceptionExtractor.name
    return GarmentExtractor.name if is_fashion(reference) else EfficientNetExtractor.name

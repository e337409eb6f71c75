"""References for samples: real images, statistics of them, or both."""

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
from .sources import ARCHIVE, FASHION, ArchiveImages, Images, file_digest, is_fashion, open_images, split_of

TEST_STATISTICS = files("fitv2.evaluation").joinpath("fashion-test-statistics.safetensors")
# How the names of a mean and a covariance end in ADM's archives, and their numbers of Inception's features.
STATISTICS = {"": POOLED, "_s": SPATIAL}


@dataclass(frozen=True)
class Known:
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
    try:
        with np.load(path) as archive:
            arrays = {key: archive[key] for key in ("mu", "sigma", "mu_s", "sigma_s") if key in archive}
            has_images = ARCHIVE in archive
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is not an archive of a reference, or damaged: {error}") from None
    if not arrays and not has_images:
        raise UserError(f"{path} holds neither images ({ARCHIVE}) nor statistics (mu, sigma)")
    known = None
    if arrays:
        spatial = known_statistics(arrays, "_s", path) if arrays.keys() & {"mu_s", "sigma_s"} else None
        known = Known(InceptionExtractor.name, known_statistics(arrays, "", path), spatial)
    return Reference(name, ArchiveImages(path) if has_images else None, known, source=path)


def fashion_test(name: str) -> Reference:
    """Returns the shipped statistics of the test images, with the images where their files are.

    Both are the same reference, since only the authors' files are accepted.
    """
    with as_file(TEST_STATISTICS) as path, safe_open(path, "pt") as file:
        fractions = json.loads(file.metadata()["recognised_per_class"])
        mean, covariance, count = (file.get_tensor(key) for key in ("mean", "covariance", "count"))
    recognised = dict(zip(CLASS_NAMES, fractions, strict=True))
    known = Known(GarmentExtractor.name, Statistics(mean, covariance, int(count)), recognised=recognised)
    split, folder = split_of(name)
    there = folder is not None or all(path.is_file() for path in split_files(split))
    return Reference(name, open_images(name, Path()) if there else None, known, source=TEST_STATISTICS)


def known_statistics(arrays: dict[str, np.ndarray], ending: str, path: Path) -> Statistics:
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

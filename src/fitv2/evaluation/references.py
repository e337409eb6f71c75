"""What samples are compared with: real pictures, statistics that somebody has already taken of them, or both."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import torch

from ..data.fashion import CLASS_NAMES, split_files
from ..errors import UserError
from .archives import PICTURES
from .efficientnet import EfficientNetExtractor
from .frechet import Statistics, check_statistics
from .garments import GarmentExtractor
from .inception import POOLED, SPATIAL, InceptionExtractor
from .pictures import FASHION, Pictures, file_digest, is_garments, open_garments, open_pictures, split_of
from .scores import TEST_STATISTICS, load_reference

# Names of a mean and a covariance in ADM's archives, and of how many features of Inception they are.
STATISTICS = {("mu", "sigma"): POOLED, ("mu_s", "sigma_s"): SPATIAL}


@dataclass(frozen=True)
class Known:
    """Statistics that come with a reference, by the extractor of that name, of pictures as they are. spatial: None
    where they lack. recognised: share in [0, 1] of each class that the extractor sees rightly, by name.
    """

    extractor: str
    statistics: Statistics
    spatial: Statistics | None = None
    recognised: dict[str, float] | None = None


@dataclass(frozen=True)
class Reference:
    """pictures, known: at least one of them. source: a file that stands for all of it; None: its pictures do."""

    name: str
    pictures: Pictures | None
    known: Known | None = None
    source: Path | Traversable | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that it holds."""
        return self.pictures.digest if self.source is None else file_digest(self.source)


def open_reference(name: str, cache: Path) -> Reference:
    """What `open_pictures` opens, an .npz archive as ADM has it (pictures, statistics or both), or "fashion:test".

    cache: a folder in which sizes of pictures are kept. Raises ValueError where there is none.
    """
    if is_garments(name) and name != FASHION and split_of(name)[0] == "test":
        return garments_of_the_test(name)
    path = Path(name)
    if path.suffix != ".npz":
        return Reference(name, open_pictures(name, cache))
    known, has_pictures = read_known(path)
    if known is None and not has_pictures:
        raise UserError(f"{path} holds neither pictures ({PICTURES}) nor statistics (mu, sigma)")
    return Reference(name, open_pictures(name, cache) if has_pictures else None, known, source=path)


def garments_of_the_test(name: str) -> Reference:
    """What ships of the test pictures, and these where they are installed or in the folder of the name: the same
    reference with and without, since nobody's files but their authors' are taken.
    """
    shipped, (split, folder) = load_reference(), split_of(name)
    shares = dict(zip(CLASS_NAMES, shipped.recognised_per_class, strict=True))
    known = Known(GarmentExtractor.name, shipped.statistics, recognised=shares)
    there = folder is not None or all(path.is_file() for path in split_files(split))
    return Reference(name, open_garments(name) if there else None, known, source=TEST_STATISTICS)


def read_known(path: Path) -> tuple[Known | None, bool]:
    """ADM's statistics of an archive, and whether it holds images. Raises UserError for damaged files."""
    try:
        with np.load(path) as archive:
            arrays = {name: archive[name] for pair in STATISTICS for name in pair if name in archive}
            has_pictures = PICTURES in archive
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is no archive of a reference, or damaged: {error}") from None
    pairs = [known_statistics(arrays, *pair, width, path) for pair, width in STATISTICS.items()]
    if pairs[0] is None and pairs[1] is not None:
        raise UserError(
            f"{path} has statistics of features with places (mu_s, sigma_s), and none of the others (mu, sigma)"
        )
    return (None if pairs[0] is None else Known(InceptionExtractor.name, *pairs)), has_pictures


def known_statistics(
    arrays: dict[str, np.ndarray], mean: str, covariance: str, width: int, path: Path
) -> Statistics | None:
    """In float64, of so many features, from the arrays of those names; None where both lack. The covariance is the mean
    of its halves, which rounding has made unequal.

    Raises UserError for anything but statistics of some spread.
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
        raise UserError(f"{path}: {mean} and {covariance} are no statistics that can be used: {error}") from None
    return Statistics(own_mean, (half + half.T) / 2, count=0)


def default_extractor(reference: str, inception_weights: Path | None) -> str:
    """The FID's network where its weights are, the garments' for garments, else what needs no download."""
    if inception_weights is not None:
        return InceptionExtractor.name
    return GarmentExtractor.name if is_garments(reference) else EfficientNetExtractor.name

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
from .frechet import Statistics
from .garments import GarmentExtractor
from .inception import InceptionExtractor
from .pictures import FASHION, Pictures, file_digest, is_garments, open_garments, open_pictures, split_of
from .scores import TEST_STATISTICS, load_reference


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
    """ADM's statistics of an archive, and whether it holds pictures. Raises ValueError for a damaged file."""
    try:
        with np.load(path) as archive:
            pairs = [
                known_statistics(*(archive[key] for key in pair)) if set(pair) <= set(archive) else None
                for pair in (("mu", "sigma"), ("mu_s", "sigma_s"))
            ]
            has_pictures = PICTURES in archive
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is no archive of a reference, or damaged: {error}") from None
    return (None if pairs[0] is None else Known(InceptionExtractor.name, *pairs)), has_pictures


def known_statistics(mean: np.ndarray, covariance: np.ndarray) -> Statistics:
    """In float64; the covariance is the mean of its halves, which rounding has made unequal.

    Raises ValueError for anything but numbers (F,) and (F, F).
    """
    shapes = f"{mean.dtype} {mean.shape} and {covariance.dtype} {covariance.shape}"
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape or {mean.dtype.kind, covariance.dtype.kind} != {"f"}:
        raise UserError(f"a mean (F,) and a covariance (F, F) of real numbers are wanted, and these are {shapes}")
    half = torch.from_numpy(covariance).double()
    return Statistics(torch.from_numpy(mean).double(), (half + half.T) / 2, count=0)


def default_extractor(reference: str, inception_weights: Path | None) -> str:
    """The FID's network where its weights are, the garments' for garments, else what needs no download."""
    if inception_weights is not None:
        return InceptionExtractor.name
    return GarmentExtractor.name if is_garments(reference) else EfficientNetExtractor.name

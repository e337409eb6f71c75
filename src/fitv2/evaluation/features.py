"""The features of a set of images: kept in files so that a set is seen once, and drawn from in subsets."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..checkpoints.state_dict import write_tensors
from ..errors import UserError
from ..randomness import Purpose, numpy_generator, torch_generator
from .extractors import Extractor, extract
from .metrics import RunningStatistics, Statistics, check_features, check_statistics, classifier_score

# The most images whose own features are kept, for measures on pairs; statistics are of all images.
MOST_KEPT = 50_000
# Increased when the same images would be seen differently.
FORMAT = 3
# Tensors of a `FeatureSet` that its file has under the same names.
OWN = ("pooled", "labels", "classes", "score")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureSet:
    """Features of a set of images by an extractor.

    Attributes:
        pooled: (n, F) float32, of the images kept: all, or 50 000 drawn with a fixed seed.
        labels: (n,) int64, the given class of each image.
        classes: (n,) int64, the most probable class of each.
        score: (2,) float64, mean and standard deviation of the classifier score of those kept.
        statistics: Of the pooled features of all images.
        spatial: Of the spatial features of all images.
        class_names: Of the labels; empty if they are not classes.
    """

    pooled: Tensor
    labels: Tensor
    classes: Tensor
    score: Tensor
    statistics: Statistics
    spatial: Statistics
    class_names: Sequence[str] = ()

    @property
    def strata(self) -> Tensor | None:
        """Returns the labels of a set with equally many images of each class, which chance does not make; else None.

        Equal means within one, as classes in turn are; there are at least two images of each class.
        """
        counts = self.labels.unique(return_counts=True)[1]
        equal = self.class_names and counts.min() >= 2 and counts.max() - counts.min() <= 1
        return self.labels if equal else None


def compute_features(
    extractor: Extractor, images: Iterator[Image.Image], labels: np.ndarray, done: Callable[[int], object]
) -> FeatureSet:
    """Returns the features of images, given in the order of their labels (N,).

    Raises UserError for fewer than two images, or features that are not finite.
    """
    kept = torch.zeros(len(labels), dtype=torch.bool)
    # Not evenly spaced: with classes in turn, every other image is of every other class.
    kept[torch.randperm(len(labels), generator=torch_generator(Purpose.SPLITS, 0))[:MOST_KEPT]] = True
    pooled, spatial, own, probabilities, start = RunningStatistics(), RunningStatistics(), [], [], 0
    for features in extract(extractor, images, done):
        chosen = kept[start : start + len(features.pooled)]
        start += len(chosen)
        pooled.add(features.pooled)
        spatial.add(features.spatial)
        own.append(features.pooled[chosen])
        probabilities.append(features.probabilities[chosen])
    p = torch.cat(probabilities)
    return FeatureSet(
        pooled=torch.cat(own),
        labels=torch.from_numpy(labels)[kept],
        classes=p.argmax(1),
        score=torch.tensor(classifier_score(p), dtype=torch.float64),
        statistics=pooled.result(),
        spatial=spatial.result(),
    )


def cached_features(
    folder: Path, extractor: Extractor, key: Sequence[object], compute: Callable[[], FeatureSet]
) -> FeatureSet:
    """Returns the features from a file in `folder`, or computes them and writes the file. A damaged file is replaced.

    The file is named after the extractor's weights and preprocessing, and `key`: everything else that decides them.
    """
    about = json.dumps([FORMAT, extractor.digest, extractor.resize, extractor.mode, *map(str, key)])
    path = folder / f"features-{hashlib.sha256(about.encode()).hexdigest()[:32]}.safetensors"
    if path.is_file():
        try:
            return read_features(path)
        except (SafetensorError, OSError, KeyError, UserError) as error:
            logger.warning("%s is damaged and is computed again (%s)", path, error)
    found = compute()
    tensors = {name: getattr(found, name) for name in OWN}
    for kind, statistics in (("pooled", found.statistics), ("spatial", found.spatial)):
        tensors |= {f"{kind}_mean": statistics.mean, f"{kind}_covariance": statistics.covariance}
        tensors["count"] = torch.tensor(statistics.count)
    try:
        write_tensors(path, tensors)
    except OSError as error:  # The result is worth more than the time that a file would have saved.
        logger.warning("%s cannot be written, so the next run computes all features again: %s", path, error)
    return found


def read_features(path: Path) -> FeatureSet:
    """Returns the features in a file. Raises UserError for numbers that no extractor gives."""
    tensors = load_file(path)
    statistics, spatial = (
        Statistics(tensors[f"{kind}_mean"], tensors[f"{kind}_covariance"], int(tensors["count"]))
        for kind in ("pooled", "spatial")
    )
    found = FeatureSet(*(tensors[name] for name in OWN), statistics=statistics, spatial=spatial)
    check_features(found.pooled)
    check_statistics(statistics)
    check_statistics(spatial)
    if not len(found.pooled) == len(found.labels) == len(found.classes):
        raise UserError("there are not as many labels as features")
    return found


def cache_folder() -> Path:
    """Returns the folder for features of real images: FITV2_CACHE, else `fitv2` in the user's cache."""
    if told := os.environ.get("FITV2_CACHE"):
        return Path(told)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fitv2"


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

"""What is kept of a set of pictures as a network sees them, and files of it, so that a set is looked at once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..checkpoints.state_dict import write_tensors
from ..errors import UserError
from ..randomness import Purpose, torch_generator
from .classifier_score import classifier_score
from .features import Extractor, check_features, extract
from .frechet import RunningStatistics, Statistics, check_statistics

# Pictures whose own features are kept, for what compares picture with picture; statistics are of all.
MOST_KEPT = 50_000
# Rises when the same images would be seen otherwise.
FORMAT = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """pooled (n, F) float32, labels and classes (n,) int64: features, given class and most probable class of the
    pictures, of more than 50 000 so many drawn with a fixed seed. Statistics of all; score: mean and deviation of the
    classifier score of those kept, (2,) float64.
    """

    pooled: Tensor
    labels: Tensor
    classes: Tensor
    score: Tensor
    pooled_mean: Tensor
    pooled_covariance: Tensor
    spatial_mean: Tensor
    spatial_covariance: Tensor
    count: Tensor

    @property
    def statistics(self) -> Statistics:
        return Statistics(self.pooled_mean, self.pooled_covariance, int(self.count))

    @property
    def spatial(self) -> Statistics:
        return Statistics(self.spatial_mean, self.spatial_covariance, int(self.count))


def summarise(
    extractor: Extractor, images: Iterator[Image.Image], labels: np.ndarray, done: Callable[[int], None]
) -> Summary:
    """Of images in the order of their labels (N,). Raises ValueError for fewer than two, or features not finite."""
    kept = torch.zeros(len(labels), dtype=torch.bool)
    # Not evenly spaced: of classes in turn, every other picture is of every other class.
    kept[torch.randperm(len(labels), generator=torch_generator(Purpose.SPLITS, 0))[:MOST_KEPT]] = True
    pooled, spatial, own, probabilities, start = RunningStatistics(), RunningStatistics(), [], [], 0
    for features in extract(extractor, images, done):
        chosen = kept[start : start + len(features.pooled)]
        start += len(chosen)
        pooled.add(features.pooled)
        spatial.add(features.spatial)
        own.append(features.pooled[chosen])
        probabilities.append(features.probabilities[chosen])
    of_all, with_places, p = pooled.result(), spatial.result(), torch.cat(probabilities)
    return Summary(
        pooled=torch.cat(own),
        labels=torch.from_numpy(labels)[kept],
        classes=p.argmax(1),
        score=torch.tensor(classifier_score(p), dtype=torch.float64),
        pooled_mean=of_all.mean,
        pooled_covariance=of_all.covariance,
        spatial_mean=with_places.mean,
        spatial_covariance=with_places.covariance,
        count=torch.tensor(start),
    )


def checked(summary: Summary) -> Summary:
    """Raises UserError for numbers that no network has seen."""
    check_features(summary.pooled)
    for statistics in (summary.statistics, summary.spatial):
        check_statistics(statistics.mean, statistics.covariance)
    if not len(summary.pooled) == len(summary.labels) == len(summary.classes):
        raise UserError("there are not as many labels as features")
    return summary


def kept_summary(folder: Path, extractor: Extractor, key: Sequence[object], make: Callable[[], Summary]) -> Summary:
    """What the extractor sees in a set of images, from a file, or made and written there. A damaged file is remade.

    key: all that decides the result besides the extractor, of which weights and preprocessing count.
    """
    about = json.dumps([FORMAT, extractor.digest, extractor.resize, extractor.mode, *map(str, key)])
    path = folder / f"features-{hashlib.sha256(about.encode()).hexdigest()[:32]}.safetensors"
    if path.is_file():
        try:
            return checked(Summary(**load_file(path)))
        except (SafetensorError, OSError, TypeError, UserError) as error:
            logger.warning("%s is damaged and is made anew (%s)", path, error)
    summary = make()
    try:
        write_tensors(path, {field.name: getattr(summary, field.name) for field in fields(Summary)})
    except OSError as error:  # The figures are worth more than the time that a file would have saved.
        logger.warning("%s cannot be written, so the next run looks at all pictures again: %s", path, error)
    return summary


def cache_folder() -> Path:
    """For what is known of real pictures: FITV2_CACHE, else `fitv2` in the user's cache."""
    if told := os.environ.get("FITV2_CACHE"):
        return Path(told)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fitv2"

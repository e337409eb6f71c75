"""An evaluation: samples are compared with a reference by a protocol, and each result has a stamp.

Protocols decide what is compared of an image when samples have one size and real images have many:

adm-square: Images as they are. The extractor resizes both sides whole: Inception and EfficientNet stretch them to a
    square, the classifier of garments keeps the aspect. With ADM's files this is the protocol of the papers, in which a
    wide sample is squeezed and meets square crops.
matched: Real images are scaled to cover the size of the samples and cropped to it. Then both are resized alike.
centre: Both are cropped to their central square, which shows the quality of the middle and ignores the borders.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..checkpoints.state_dict import write_tensors
from ..errors import UserError
from ..randomness import Purpose, torch_generator
from .comparison import VERSION, FeatureSet, compare
from .extractors import Extractor, extract
from .generated import Progress
from .image_sets import Images, View
from .inputs import GivenStatistics, Reference, Samples
from .metrics import RunningStatistics, Statistics, check_features, check_statistics, classifier_score
from .results import Result

ComparisonProtocol = Literal["adm-square", "matched", "centre"]
Size = tuple[int, int]
FILTER = "antialiased bicubic"
# The most images whose own features are kept, for measures on pairs; statistics are of all images.
MOST_KEPT = 50_000
# Increased when the same images would be seen differently.
FORMAT = 3
# Tensors of a `FeatureSet` that its file has under the same names.
OWN = ("pooled", "labels", "classes", "score")

logger = logging.getLogger(__name__)


def real_size(protocol: ComparisonProtocol, size: Size | None) -> Size | None:
    """Returns the size to which real images are scaled and cropped for samples of that size; None for their own."""
    if protocol == "adm-square" or size is None:
        return None
    return size if protocol == "matched" else (min(size), min(size))


def view_of(image: Image.Image, protocol: ComparisonProtocol, size: Size | None = None) -> Image.Image:
    """Returns an image as it is compared, scaled to cover (height, width) if given and cropped to it."""
    if size is not None:
        return ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC)
    if protocol != "centre":
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How samples are compared, by which metrics and protocol (None: the usual one).

    cache, kept: Folders for features of real images and of samples; kept None: those of samples are not kept.
    """

    reference: Reference
    extractor: Extractor
    metrics: Collection[str]
    protocol: ComparisonProtocol | None
    cache: Path
    kept: Path | None
    progress: Progress

    def protocol_for(self, size: Size | None) -> ComparisonProtocol:
        """Returns the protocol for samples of that size, None for many sizes. Raises UserError if none is possible.

        The default is "matched". It is "adm-square" if statistics of images as they are come with the reference, or if
        samples and real images have many sizes.
        """
        usual: ComparisonProtocol = "adm-square" if self.reference.given is not None or size is None else "matched"
        protocol = self.protocol or usual
        if protocol == "matched" and size is None:
            raise UserError(
                "the protocol matched needs samples of one size; give --size HEIGHTxWIDTH, or another --protocol"
            )
        if self.reference.images is None and self.given_for(protocol) is None:
            raise UserError(
                f"{self.reference.name} holds statistics of one extractor by adm-square, and no images for "
                f"{self.extractor.name} by {protocol}"
            )
        return protocol

    def given_for(self, protocol: ComparisonProtocol) -> GivenStatistics | None:
        """Returns the statistics that come with the reference, if they are the ones that are needed."""
        given = self.reference.given
        return given if given and given.extractor == self.extractor.name and protocol == "adm-square" else None

    def about(self) -> dict[str, Any]:
        """Returns all that decides a result besides the samples."""
        extractor = [self.extractor.name, self.extractor.digest, self.extractor.resize]
        of_all = {"suite": VERSION, "reference": self.reference.digest, "protocol": self.protocol}
        return of_all | {"extractor": extractor, "metrics": sorted(set(self.metrics))}

    def score(self, samples: Samples) -> Result:
        """Compares samples with the reference. Raises UserError if they do not go together."""
        protocol, images = self.protocol_for(samples.size), self.reference.images
        key = (samples.images.digest, samples.chosen.tolist(), protocol if protocol == "centre" else "as they are")
        view = partial(view_of, protocol=protocol)
        own = self.features_of(samples.images, samples.chosen, view, self.kept, key, f"samples {samples.called}")
        given, others, notes = self.given_for(protocol), None, list(images.notes) if images is not None else []
        # For statistics that are given, no real image has to be seen.
        if images is not None and (given is None or set(self.metrics) - {"fd", "sfd"}):
            key = (images.digest, protocol, None if protocol == "adm-square" else samples.size, FILTER)
            fitted = real_size(protocol, samples.size)
            view = partial(view_of, protocol=protocol, size=fitted)
            others = self.features_of(images, np.arange(len(images)), view, self.cache, key, "real images")
            if fitted and (smaller := int((images.sizes < fitted).any(1).sum())):
                told = f"{fitted[0]}x{fitted[1]}"
                notes.append(f"{smaller} of {len(images)} real images are smaller than {told} and were enlarged")
        real = given or others
        assert real is not None  # See `protocol_for`.
        if not real.statistics.count:
            notes.append("the reference does not say how many images its statistics are of")
        result = compare(own, others, given, self.extractor, self.metrics, self.progress)
        result.notes += [*notes, *samples.notes]
        result.stamp = self.stamp(samples, protocol, given is not None, real.statistics.count)
        return result

    def stamp(self, samples: Samples, protocol: ComparisonProtocol, given: bool, count: int) -> dict[str, Any]:
        """Returns how a result came about; the reference has statistics of `count` images, given or computed."""
        return {
            "suite": VERSION,
            "size": samples.called,
            "protocol": protocol,
            "filter": None if protocol == "adm-square" else FILTER,
            "num": len(samples.chosen),
            "reference": self.reference.name,
            "reference_sha256": self.reference.digest,
            "reference_count": count,
            "reference_statistics": "given" if given else "of its pictures",
            "extractor": self.extractor.name,
            "names": self.extractor.titles,
            "extractor_sha256": self.extractor.digest,
            "resize": self.extractor.resize,
        } | samples.about

    def features_of(
        self, images: Images, chosen: np.ndarray, view: View, folder: Path | None, key: tuple[object, ...], what: str
    ) -> FeatureSet:
        """Returns the features of views of chosen images, see `cached_features`."""

        def compute() -> FeatureSet:
            with self.progress(f"extracting features of {what}", len(chosen)) as done:
                views = images.read(chosen.tolist(), self.extractor.mode, view)
                return compute_features(self.extractor, views, images.labels[chosen], done)

        found = compute() if folder is None else cached_features(folder, self.extractor, key, compute)
        return replace(found, class_names=images.class_names)


# Features of a set, kept in files so that a set is seen once


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

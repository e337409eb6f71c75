"""The features of two sets of images, and what follows from them: all figures, those of real images, and notes on both.

What is not possible is left out, with a note.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .extractors import Extractor
from .generated import Progress
from .inputs import GivenStatistics, balanced_subset, disjoint_subsets, matching_subset
from .metrics import (
    DENSITY_NEIGHBOURS,
    PART,
    VOTERS,
    Statistics,
    compare_neighbours,
    frechet_distance,
    kernel_distance,
    kid_of_subsets,
    vote,
)
from .results import Figures, Result

# Increased when the same images get other figures.
VERSION = 3
METRICS = ("fd", "sfd", "kid", "cs", "pr", "accuracy")
# With fewer images, the Fréchet distance is too large by chance alone; papers use 50 000.
ENOUGH = 10_000
# Draws of real images, and the most images in each: nearest neighbours of more would take hours.
DRAWS, MOST_DRAWN = 10, 10_000
# What recognises classes that the extractor does not know.
VOTE = f"the {VOTERS} nearest real images"


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


def compare(
    own: FeatureSet,
    others: FeatureSet | None,
    given: GivenStatistics | None,
    extractor: Extractor,
    metrics: Collection[str],
    progress: Progress,
) -> Result:
    """Returns all figures of samples, without a stamp; the statistics of `others`, real images, yield to `given`.

    Raises UserError if features cannot be used.
    """
    real = given or others
    assert real is not None
    found = Result(notes=size_notes(own, others, real.statistics, metrics))
    if "fd" in metrics:
        found.scores["fd"] = frechet_distance(own.statistics, real.statistics)
    if "sfd" in metrics and real.spatial is not None:
        found.scores["sfd"] = frechet_distance(own.spatial, real.spatial)
    elif "sfd" in metrics:
        found.notes.append("the reference has no statistics of spatial features, so there is no sfd")
    if "cs" in metrics:
        for figures, features in ((found.scores, own), (found.real, others)):
            if features is not None:
                figures["classifier_score"], figures["classifier_score_std"] = features.score.tolist()
    if others is not None:
        found.scores |= compare_images(own.pooled, own.strata, others.pooled, others.strata, metrics)
        if "kid" in metrics and "kid_subsets" in extractor.titles:
            subsets = kid_of_subsets(own.pooled, others.pooled)
            found.scores["kid_subsets"], found.scores["kid_subsets_std"] = subsets
        if {"fd", "kid", "pr"} & set(metrics):
            with progress("comparing at equal numbers", DRAWS) as done:
                add_equal_numbers(found, own, others, metrics, done)
    elif left := sorted({"kid", "pr"} & set(metrics)):
        found.notes.append(f"the reference has statistics and no images, so there is no {' and no '.join(left)}")
    if "accuracy" in metrics and own.class_names:
        add_accuracy(found, own, others, given.recognised if given else None, extractor)
    return found


def compare_images(
    own: Tensor, own_strata: Tensor | None, others: Tensor, others_strata: Tensor | None, metrics: Collection[str]
) -> Figures:
    """Returns kid and kid_error, then precision and so on if there are enough images to have neighbours.

    Features are (N, F) and (M, F), strata those of `kernel_distance`.
    """
    figures: Figures = {}
    if "kid" in metrics:
        figures["kid"], figures["kid_error"] = kernel_distance(own, others, own_strata, others_strata)
    if "pr" in metrics and min(len(own), len(others)) > DENSITY_NEIGHBOURS:
        figures |= compare_neighbours(own, others)
    return figures


def add_equal_numbers(
    found: Result, own: FeatureSet, others: FeatureSet, metrics: Collection[str], done: Callable[[int], object]
) -> None:
    """Adds what real images score against other real images, and what samples score against the same.

    Each of ten draws has two disjoint sets of real images and one of samples, all of one size: as many as there are
    samples, or as the real images allow. They are drawn by class if the samples are. Figures are means over the draws,
    KEY_range has the least and the largest, and `drawn` is the size of the sets. After each draw, `done` is called.
    """
    labels, wanted = torch.zeros_like(others.labels), torch.zeros_like(own.labels)
    numbers = None if own.strata is None else numbers_among(own.class_names, others.class_names)
    if numbers is not None:
        labels, wanted = others.labels, numbers[own.labels]
    asked = wanted[torch.from_numpy(balanced_subset(wanted.numpy(), MOST_DRAWN))]

    def drawn(features: FeatureSet, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        strata = features.labels[indices]
        usable = numbers is not None and strata.unique(return_counts=True)[1].min() >= 2
        return features.pooled[indices], strata if usable else None

    draws: tuple[list[Figures], list[Figures]] = [], []
    size = 0
    for seed in range(DRAWS):
        first, second = disjoint_subsets(labels, asked, seed)
        size = len(first)
        if size <= DENSITY_NEIGHBOURS:
            return
        chosen = matching_subset(wanted, labels[first], seed)
        target = drawn(others, second)
        for draw, features in zip(draws, (drawn(others, first), drawn(own, chosen)), strict=True):
            figures = compare_images(*features, *target, metrics)
            if "fd" in metrics:
                figures["fd"] = frechet_distance(Statistics.of(features[0]), Statistics.of(target[0]))
            draw.append(figures)
        done(1)
    if size < len(wanted):
        why = "more would take hours" if size == len(asked) else "there are not twice as many real images"
        found.notes.append(f"at equal numbers {size} of {len(wanted)} samples are compared, as {why}")
    found.real["drawn"] = size
    for figures, draw in zip((found.real, found.equal), draws, strict=True):
        columns = {key: [one[key] for one in draw] for key in draw[0] if key != "kid_error"}
        figures |= {key: sum(values) / DRAWS for key, values in columns.items()}
        figures |= {f"{key}_range": [min(values), max(values)] for key, values in columns.items()}


def add_accuracy(
    found: Result,
    own: FeatureSet,
    others: FeatureSet | None,
    recognised: dict[str, float] | None,
    extractor: Extractor,
) -> None:
    """Adds how many samples show the requested class, by the extractor if it knows the classes, else by neighbours.

    The accuracy of real images, for which `recognised` may be known, has the samples' frequencies of classes.
    """
    real_names = list(others.class_names) if others is not None else []
    names, by, of_class = list(extractor.class_names or ()), extractor.name, recognised or {}
    numbers = numbers_among(own.class_names, names)
    if numbers is not None:
        classes, known = own.classes, numbers_among(real_names, names)
        if recognised is None and others is not None and real_names and known is not None:
            of_class = fractions(others.classes, known[others.labels], names)
    else:
        names, by = real_names, VOTE
        numbers = numbers_among(own.class_names, names)
        if numbers is None or others is None or len(others.pooled) <= VOTERS:
            found.notes.append("the classes of the samples are not those of the reference, so there is no accuracy")
            return
        classes = vote(own.pooled, others.pooled, others.labels)
        of_class = fractions(vote(others.pooled, others.pooled, others.labels), others.labels, names)
    labels = numbers[own.labels]
    found.scores["accuracy_by"] = by
    accuracy = found.scores["accuracy"] = float((classes == labels).double().mean())
    found.scores["accuracy_error"] = (accuracy * (1 - accuracy) / len(labels)) ** 0.5
    found.scores["accuracy_per_class"] = fractions(classes, labels, names)
    if of_class:
        found.real["accuracy_per_class"] = of_class
        requested = [names[label] for label in labels.tolist()]
        if lacking := sorted(set(requested) - of_class.keys()):
            found.notes.append(f"the reference has no image of {', '.join(lacking)}, so its accuracy is by class alone")
        else:
            found.real["accuracy"] = sum(of_class[name] for name in requested) / len(requested)


def numbers_among(names: Sequence[str], others: Sequence[str]) -> Tensor | None:
    """Returns the place of each name among the others, (N,) int64; None if one is missing or ambiguous."""
    if list(names) == list(others):
        return torch.arange(len(names))
    places = {name: place for place, name in enumerate(others)}
    if len(places) < len(others) or not set(names) <= places.keys():
        return None
    return torch.tensor([places[name] for name in names], dtype=torch.int64)


def fractions(classes: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Returns by name, for each class that has images, how often the recognised class (N,) is the label (N,)."""
    right = (classes == labels).double()
    return {names[int(label)]: float(right[labels == label].mean()) for label in labels.unique()}


def size_notes(own: FeatureSet, others: FeatureSet | None, real: Statistics, metrics: Collection[str]) -> list[str]:
    """Returns how too few images, or equally many of each class, distort the figures."""
    notes, number, count = [], len(real.mean), own.statistics.count
    if "cs" in metrics and count < PART:
        notes.append(f"the classifier score of {count} images is biased downwards, as of fewer than {PART}")
    if {"fd", "sfd"} & set(metrics):
        if own.strata is not None:
            notes.append(
                "the classes are balanced, which lowers a Frechet distance: papers draw classes at random, so their "
                "values are not comparable even at equal numbers"
            )
        if count < ENOUGH:
            notes.append(f"the Frechet distance of {count} images is biased upwards; compare it only at equal numbers")
        for whose, images in (("samples", count), ("real images", real.count)):
            if 0 < images <= number:
                notes.append(
                    f"{images} {whose} are too few for a covariance of {number} features of full rank: the kernel "
                    "distance is the better figure"
                )
    if "pr" in metrics and others is not None:
        n, m = len(own.pooled), len(others.pooled)
        if min(n, m) <= DENSITY_NEIGHBOURS:
            notes.append(f"{min(n, m)} images are too few for nearest neighbours, so there is no pr")
        elif n < m:
            notes.append(f"{n} samples cover fewer of {m} real images than as many would")
    per_class = own.labels.unique(return_counts=True)[1]
    if "kid" in metrics and others is not None and len(per_class) > 1 and per_class.max() <= 2 and per_class.min() < 2:
        notes.append("some classes have one sample only, so the kernel distance is too low by the missing pairs")
    return notes

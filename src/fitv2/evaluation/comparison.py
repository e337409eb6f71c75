"""All figures of samples against real images, what real images score themselves, and what must be said about them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from .extractors import Extractor, InceptionExtractor
from .features import FeatureSet, balanced_classes, balanced_subset, disjoint_subsets, matching_subset
from .kernel_distance import SUBSETS, kernel_distance, kid_of_subsets
from .metrics import DENSITY_NEIGHBOURS, PART, VOTERS, Statistics, compare_neighbours, frechet_distance, vote

# Increased when the same images get other figures.
VERSION = 3
METRICS = ("fd", "sfd", "kid", "cs", "pr", "accuracy")
# With fewer images, the Fréchet distance is too large by chance alone; papers use 50 000.
ENOUGH = 10_000
# Draws of real images, and the most images in each: nearest neighbours of more would take hours.
DRAWS, MOST_DRAWN = 10, 10_000
Figures = dict[str, Any]


def figure_names(score: str) -> dict[str, str]:
    """Returns what the figures of an extractor are called, by key.

    FID, sFID, KID and Inception Score are names of Inception's figures alone. The papers' KID is a mean over subsets;
    `kid` is the kernel distance of all images.

    Args:
        score: The name of the extractor's Fréchet distance.
    """
    if score == InceptionExtractor.score:
        subsets = f"KID of {SUBSETS} subsets"
        return {"fd": "FID", "sfd": "sFID", "kid": "KD", "kid_subsets": subsets, "classifier_score": "Inception Score"}
    network = score.removeprefix("FD-")
    return {"fd": score, "sfd": f"s{score}", "kid": f"KD-{network}", "classifier_score": f"CS-{network}"}


@dataclass(frozen=True)
class Side:
    """Samples, or what they are compared with; `features` is None if only statistics are known.

    recognised: Fraction by class name, for a side without features.
    """

    class_names: Sequence[str]
    statistics: Statistics
    spatial: Statistics | None
    features: FeatureSet | None
    recognised: dict[str, float] | None = None


@dataclass(frozen=True)
class ImageSet:
    """Pooled features (N, F), and classes (N,) if each has a fixed number of images, see `kernel_distance`."""

    features: Tensor
    classes: Tensor | None

    @classmethod
    def of(cls, features: FeatureSet, has_classes: bool) -> ImageSet:
        """All images; has_classes: whether the labels are classes."""
        return cls(features.pooled, balanced_classes(features.labels) if has_classes else None)

    @classmethod
    def drawn(cls, features: FeatureSet, indices: Tensor, by_class: bool) -> ImageSet:
        """Some images; by_class: whether they were drawn by class."""
        labels = features.labels[indices]
        pairs = by_class and bool(labels.unique(return_counts=True)[1].min() >= 2)
        return cls(features.pooled[indices], labels if pairs else None)


@dataclass
class Comparison:
    """Figures by key, and notes.

    fd and sfd are the Fréchet distances of pooled and spatial features. kid is the kernel distance and kid_error its
    standard error; kid_subsets and kid_subsets_std are mean and standard deviation over subsets, of Inception only.
    classifier_score has the standard deviation over parts, classifier_score_std. precision, recall, density and
    coverage follow. accuracy (with accuracy_error) and accuracy_per_class are fractions in [0, 1] of images whose class
    is recognised.

    Attributes:
        scores: Of the samples.
        real: Of real images.
        equal: Of as many samples as there are images in `real`, see `add_equal_numbers`.
        notes: In sentences.
    """

    scores: Figures = field(default_factory=dict)
    real: Figures = field(default_factory=dict)
    equal: Figures = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def compare(samples: Side, real: Side, extractor: Extractor, metrics: Collection[str]) -> Comparison:
    """Returns all figures of the samples against real images. What is not possible is left out, with a note.

    Raises UserError if features cannot be used.
    """
    own, others = samples.features, real.features
    assert own is not None
    found = Comparison(notes=size_notes(samples, real, metrics))
    if "fd" in metrics:
        found.scores["fd"] = frechet_distance(samples.statistics, real.statistics)
    if "sfd" in metrics and real.spatial is not None and samples.spatial is not None:
        found.scores["sfd"] = frechet_distance(samples.spatial, real.spatial)
    elif "sfd" in metrics:
        found.notes.append("the reference has no statistics of spatial features, so there is no sfd")
    if "cs" in metrics:
        for figures, features in ((found.scores, own), (found.real, others)):
            if features is not None:
                figures["classifier_score"], figures["classifier_score_std"] = features.score.tolist()
    if others is not None:
        sets = ImageSet.of(own, bool(samples.class_names)), ImageSet.of(others, bool(real.class_names))
        found.scores |= compare_images(*sets, metrics)
        if "kid" in metrics and extractor.score == InceptionExtractor.score:
            subsets = kid_of_subsets(own.pooled, others.pooled)
            found.scores["kid_subsets"], found.scores["kid_subsets_std"] = subsets
        found.notes += pair_notes(own, others, metrics)
        if {"fd", "kid", "pr"} & set(metrics):
            add_equal_numbers(found, samples, real, metrics)
    elif left := sorted({"kid", "pr"} & set(metrics)):
        found.notes.append(f"the reference has statistics and no images, so there is no {' and no '.join(left)}")
    if "accuracy" in metrics and samples.class_names:
        add_accuracy(found, samples, real, extractor)
    return found


def compare_images(own: ImageSet, others: ImageSet, metrics: Collection[str]) -> Figures:
    """Returns kid and kid_error; precision and so on if there are enough images to have neighbours."""
    figures: Figures = {}
    if "kid" in metrics:
        found = kernel_distance(own.features, others.features, own.classes, others.classes)
        figures["kid"], figures["kid_error"] = found.value, found.error
    if "pr" in metrics and min(len(own.features), len(others.features)) > DENSITY_NEIGHBOURS:
        figures |= asdict(compare_neighbours(own.features, others.features))
    return figures


# What real images score


def add_equal_numbers(found: Comparison, samples: Side, real: Side, metrics: Collection[str]) -> None:
    """Adds what real images score against other real images, and what samples score against the same.

    Each of ten draws has two disjoint sets of real images and one of samples, all of one size: as many as there are
    samples, or as the real images allow. They are drawn by class if the samples are. Figures are means over the draws,
    KEY_range has the least and the largest, and `drawn` is the size of the sets. Nothing is added if there are too few
    images.
    """
    own, others = samples.features, real.features
    assert own is not None and others is not None
    labels, wanted = torch.zeros_like(others.labels), torch.zeros_like(own.labels)
    numbers = numbers_among(samples.class_names, real.class_names)
    by_class = bool(samples.class_names) and balanced_classes(own.labels) is not None and numbers is not None
    if by_class and numbers is not None:
        labels, wanted = others.labels, numbers[own.labels]
    asked = wanted[torch.from_numpy(balanced_subset(wanted.numpy(), MOST_DRAWN))]
    of_real, of_samples, size = [], [], 0
    for seed in range(DRAWS):
        first, second, _ = disjoint_subsets(labels, asked, seed)
        size = len(first)
        if size <= DENSITY_NEIGHBOURS:
            return
        chosen = matching_subset(wanted, labels[first], seed)
        target = ImageSet.drawn(others, second, by_class)
        of_real.append(compare_draw(ImageSet.drawn(others, first, by_class), target, metrics))
        of_samples.append(compare_draw(ImageSet.drawn(own, chosen, by_class), target, metrics))
    if size < len(wanted):
        why = "more would take hours" if size == len(asked) else "there are not twice as many real images"
        found.notes.append(f"at equal numbers {size} of {len(wanted)} samples are compared, as {why}")
    found.real |= {"drawn": size} | over_draws(of_real)
    found.equal |= over_draws(of_samples)


def compare_draw(own: ImageSet, others: ImageSet, metrics: Collection[str]) -> Figures:
    """Returns fd, kid, precision and so on of one draw."""
    figures = compare_images(own, others, metrics)
    figures.pop("kid_error", None)
    if "fd" in metrics:
        figures["fd"] = frechet_distance(Statistics.of(own.features), Statistics.of(others.features))
    return figures


def over_draws(draws: Sequence[Figures]) -> Figures:
    """Returns the mean of each figure, and KEY_range: the least and the largest."""
    columns = {key: [draw[key] for draw in draws] for key in draws[0]}
    means = {key: sum(values) / len(draws) for key, values in columns.items()}
    return means | {f"{key}_range": [min(values), max(values)] for key, values in columns.items()}


# Accuracy


def add_accuracy(found: Comparison, samples: Side, real: Side, extractor: Extractor) -> None:
    """Adds how many samples show the class that was requested.

    The extractor decides if it knows the classes, else the five nearest real images. The accuracy of real images has
    the same frequencies of classes as the samples.
    """
    own, others = samples.features, real.features
    assert own is not None
    names = [*(extractor.class_names or ())]
    by, of_class = extractor.name, real.recognised or {}
    numbers = numbers_among(samples.class_names, names)
    if numbers is not None:
        classes, known = own.classes, numbers_among(real.class_names, names)
        if real.recognised is None and others is not None and real.class_names and known is not None:
            of_class = fractions(others.classes, known[others.labels], names)
    else:
        names, by = list(real.class_names), f"the {VOTERS} nearest real images"
        numbers = numbers_among(samples.class_names, names)
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


# Notes


def pair_notes(own: FeatureSet, others: FeatureSet, metrics: Collection[str]) -> list[str]:
    """Returns what too few images do to figures of pairs of images."""
    notes, n, m = [], len(own.pooled), len(others.pooled)
    if "pr" in metrics and min(n, m) <= DENSITY_NEIGHBOURS:
        notes.append(f"{min(n, m)} images are too few for nearest neighbours, so there is no pr")
    elif "pr" in metrics and n < m:
        notes.append(f"{n} samples cover fewer of {m} real images than as many would")
    counts = own.labels.unique(return_counts=True)[1]
    if "kid" in metrics and len(counts) > 1 and counts.max() <= 2 and counts.min() < 2:
        notes.append("some classes have one sample only, so the kernel distance is too low by the missing pairs")
    return notes


def size_notes(samples: Side, real: Side, metrics: Collection[str]) -> list[str]:
    """Returns what too few images do to figures of statistics."""
    notes, number, count = [], len(samples.statistics.mean), samples.statistics.count
    if "cs" in metrics and count < PART:
        notes.append(f"the classifier score of {count} images is biased downwards, as of fewer than {PART}")
    if not {"fd", "sfd"} & set(metrics):
        return notes
    if samples.class_names and samples.features is not None and balanced_classes(samples.features.labels) is not None:
        notes.append(
            "the classes are balanced, which lowers a Frechet distance: papers draw classes at random, so their values "
            "are not comparable even at equal numbers"
        )
    if count < ENOUGH:
        notes.append(f"the Frechet distance of {count} images is biased upwards; compare it only at equal numbers")
    for whose, side in (("samples", samples), ("real images", real)):
        if 0 < side.statistics.count <= number:
            notes.append(
                f"{side.statistics.count} {whose} are too few for a covariance of {number} features of full rank: the "
                "kernel distance is the better figure"
            )
    return notes

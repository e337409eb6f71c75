"""All measures of samples against real pictures, and what has to be said of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..randomness import Purpose, numpy_generator
from .classifier_score import PART
from .features import Extractor, by_class, drawn_sets
from .frechet import Statistics, frechet_distance
from .inception import InceptionExtractor
from .kid import SUBSETS, kernel_distance, kid_of_subsets
from .neighbours import DENSITY_NEIGHBOURS, VOTERS, compare_neighbours, vote
from .pictures import in_turn
from .summary import Summary

# Counts up when the same pictures get other figures.
VERSION = 3
METRICS = ("fd", "sfd", "kid", "cs", "pr", "accuracy")
# Below, the Frechet distance is too large by chance alone; papers take 50 000.
ENOUGH = 10_000
# Draws of real images, and the most images of each: nearest neighbours of more would take hours.
DRAWS, MOST_DRAWN = 10, 10_000
Figures = dict[str, Any]


def figure_names(score: str) -> dict[str, str]:
    """What the figures of a network are called, by their keys; score: the name of its Frechet distance.

    FID, sFID, KID and Inception Score are those of Inception alone: of another network nobody may take them for these.
    The KID of the papers is a mean over subsets; `kid` is the kernel distance of all images.
    """
    if score == InceptionExtractor.score:
        subsets = f"KID of {SUBSETS} subsets"
        return {"fd": "FID", "sfd": "sFID", "kid": "KD", "kid_subsets": subsets, "classifier_score": "Inception Score"}
    network = score.removeprefix("FD-")
    return {"fd": score, "sfd": f"s{score}", "kid": f"KD-{network}", "classifier_score": f"CS-{network}"}


@dataclass(frozen=True)
class Side:
    """Samples, or what they are compared with. summary: None where only statistics are known; class_names: of its
    labels, empty without classes; recognised: by class, where pictures are not at hand.
    """

    class_names: Sequence[str]
    statistics: Statistics
    spatial: Statistics | None
    summary: Summary | None
    recognised: dict[str, float] | None = None

    @property
    def as_set(self) -> ImageSet:
        return ImageSet(self.summary.pooled, by_class(self.summary.labels) if self.class_names else None)


@dataclass(frozen=True)
class ImageSet:
    """features (N, F); classes (N,) where their frequencies are fixed by construction, see `kernel_distance`."""

    features: Tensor
    classes: Tensor | None

    @classmethod
    def of(cls, summary: Summary, indices: Tensor, of_classes: bool) -> ImageSet:
        """Of some images; of_classes: whether they were drawn by class."""
        labels = summary.labels[indices]
        pairs = of_classes and bool(labels.unique(return_counts=True)[1].min() >= 2)
        return cls(summary.pooled[indices], labels if pairs else None)


@dataclass(frozen=True)
class Measured:
    """scores: of the samples. real: of real images. equal: of the samples at the numbers of `real`, see
    `at_equal_numbers`. fd, sfd: Frechet distance and that of the features with places. kid, kid_error: kernel distance
    and its standard error; of Inception kid_subsets and its _std, over subsets. classifier_score and its _std over
    parts. precision, recall, density, coverage. accuracy, accuracy_per_class: in [0, 1], of the class asked for.
    """

    scores: Figures
    real: Figures
    equal: Figures
    notes: list[str]


def measure(samples: Side, real: Side, extractor: Extractor, metrics: Collection[str]) -> Measured:
    """All figures of the samples against real images. What cannot be had is left out, with a note.

    Raises UserError where features are unfit.
    """
    scores, of_real, equal, notes = {}, {}, {}, size_notes(samples, real, metrics)
    if "fd" in metrics:
        scores["fd"] = frechet_distance(samples.statistics, real.statistics)
    if "sfd" in metrics:
        if real.spatial is None:
            notes.append("the reference has no statistics of features with places, so there is no sfd")
        else:
            scores["sfd"] = frechet_distance(samples.spatial, real.spatial)
    if "cs" in metrics:
        scores["classifier_score"], scores["classifier_score_std"] = samples.summary.score.tolist()
        if real.summary is not None:
            of_real["classifier_score"], of_real["classifier_score_std"] = real.summary.score.tolist()
    if real.summary is None:
        if left := sorted({"kid", "pr"} & set(metrics)):
            notes.append(f"the reference has statistics and no pictures, so there is no {' and no '.join(left)}")
    else:
        scores |= compare_images(samples.as_set, real.as_set, metrics)
        if "kid" in metrics and extractor.score == InceptionExtractor.score:
            pair = samples.summary.pooled, real.summary.pooled
            scores["kid_subsets"], scores["kid_subsets_std"] = kid_of_subsets(*pair)
        notes += pair_notes(samples, real, metrics)
        if {"fd", "kid", "pr"} & set(metrics):
            drawn, equal, said = at_equal_numbers(samples, real, metrics)
            of_real |= drawn
            notes += said
    if "accuracy" in metrics and samples.class_names:
        add_accuracy(samples, real, extractor, scores, of_real, notes)
    return Measured(scores, of_real, equal, notes)


def compare_images(own: ImageSet, others: ImageSet, metrics: Collection[str]) -> Figures:
    """kid, kid_error; precision and so on, where images are enough to have neighbours."""
    figures: Figures = {}
    if "kid" in metrics:
        found = kernel_distance(own.features, others.features, own.classes, others.classes)
        figures["kid"], figures["kid_error"] = found.value, found.error
    if "pr" in metrics and min(len(own.features), len(others.features)) > DENSITY_NEIGHBOURS:
        figures |= asdict(compare_neighbours(own.features, others.features))
    return figures


def at_equal_numbers(samples: Side, real: Side, metrics: Collection[str]) -> tuple[Figures, Figures, list[str]]:
    """What real images score against other real ones, what samples score against the same, and notes.

    In each of ten draws two disjoint sets of real images and one of samples, all of one size: as many as there are
    samples, or as real images suffice for. By class where the samples are. Figures are means, with KEY_range the least
    and the largest; drawn: the size of the sets. Empty where images are too few to say anything.
    """
    own, others = samples.summary, real.summary
    labels, wanted = torch.zeros_like(others.labels), torch.zeros_like(own.labels)
    numbers = numbers_among(samples.class_names, real.class_names)
    of_classes = samples.as_set.classes is not None and numbers is not None
    if of_classes:
        labels, wanted = others.labels, numbers[own.labels]
    asked = wanted[torch.from_numpy(in_turn(wanted.numpy(), MOST_DRAWN))]
    drawn: list[Figures] = []
    sampled: list[Figures] = []
    for seed in range(DRAWS):
        first, second, _ = drawn_sets(labels, asked, seed)
        if len(first) <= DENSITY_NEIGHBOURS:
            return {}, {}, []
        chosen = as_many(wanted, labels[first], seed)
        sets = [ImageSet.of(side, at, of_classes) for side, at in ((own, chosen), (others, first), (others, second))]
        drawn.append(compare_sets(sets[1], sets[2], metrics))
        sampled.append(compare_sets(sets[0], sets[2], metrics))
    notes = []
    if len(first) < len(wanted):
        why = "more would take hours" if len(first) == len(asked) else "there are not twice as many real pictures"
        notes.append(f"at equal numbers {len(first)} of {len(wanted)} samples are compared, as {why}")
    return {"drawn": len(first)} | over_draws(drawn), over_draws(sampled), notes


def compare_sets(own: ImageSet, others: ImageSet, metrics: Collection[str]) -> Figures:
    figures = compare_images(own, others, metrics)
    figures.pop("kid_error", None)
    if "fd" in metrics:
        figures["fd"] = frechet_distance(Statistics.of(own.features), Statistics.of(others.features))
    return figures


def over_draws(draws: Sequence[Figures]) -> Figures:
    """Mean of each figure, and KEY_range: the least and the largest."""
    means = {key: sum(draw[key] for draw in draws) / len(draws) for key in draws[0]}
    return means | {
        f"{key}_range": [min(draw[key] for draw in draws), max(draw[key] for draw in draws)] for key in draws[0]
    }


def as_many(labels: Tensor, wanted: Tensor, seed: int) -> Tensor:
    """Random indices of images of the classes `labels` (N,), as many of each class as `wanted` (M,) has."""
    order = torch.from_numpy(numpy_generator(Purpose.SPLITS, seed, 1).permutation(len(labels)))
    classes, counts = wanted.unique(return_counts=True)
    return torch.cat([order[labels[order] == label][:count] for label, count in zip(classes, counts, strict=True)])


def pair_notes(samples: Side, real: Side, metrics: Collection[str]) -> list[str]:
    """What too few images do to figures of pairs of images."""
    notes, own, others = [], len(samples.summary.pooled), len(real.summary.pooled)
    if "pr" in metrics and min(own, others) <= DENSITY_NEIGHBOURS:
        notes.append(f"{min(own, others)} pictures are too few for nearest neighbours, so there is no pr")
    elif "pr" in metrics and own < others:
        notes.append(f"{own} samples cover fewer of {others} real pictures than as many would")
    counts = samples.summary.labels.unique(return_counts=True)[1]
    if "kid" in metrics and len(counts) > 1 and counts.max() <= 2 and counts.min() < 2:
        notes.append("of some classes there is one sample only, so the kernel distance is too low by the missing pairs")
    return notes


def size_notes(samples: Side, real: Side, metrics: Collection[str]) -> list[str]:
    """What too few pictures do to the figures."""
    notes, features, count = [], len(samples.statistics.mean), samples.statistics.count
    if "cs" in metrics and count < PART:
        notes.append(f"the classifier score of {count} pictures is biased downwards, as of fewer than {PART}")
    if not {"fd", "sfd"} & set(metrics):
        return notes
    if samples.class_names and samples.summary is not None and by_class(samples.summary.labels) is not None:
        notes.append(
            "the classes are balanced, which lowers a Frechet distance: papers draw classes at random, so theirs do "
            "not compare at equal numbers"
        )
    if count < ENOUGH:
        notes.append(f"the Frechet distance of {count} pictures is biased upwards; compare it only at equal numbers")
    for whose, side in (("samples", samples), ("real pictures", real)):
        if 0 < side.statistics.count <= features:
            notes.append(
                f"{side.statistics.count} {whose} are fewer than make {features} features' covariance one of full "
                "rank: the kernel distance is the better figure"
            )
    return notes


def add_accuracy(
    samples: Side, real: Side, extractor: Extractor, scores: Figures, of_real: Figures, notes: list[str]
) -> None:
    """How many samples show the class that was asked for: as the extractor sees it where it knows their classes, else
    as the five nearest real pictures do. Of real pictures the same, with classes as frequent as in the samples.
    """
    own = numbers_among(samples.class_names, extractor.class_names or [])
    if own is not None:
        names, of_class = extractor.class_names, {}
        scores["accuracy_by"] = extractor.name
        classes, labels = samples.summary.classes, own[samples.summary.labels]
        others = numbers_among(real.class_names, names)
        if real.recognised is not None:
            of_class = real.recognised
        elif real.summary is not None and real.class_names and others is not None:
            of_class = shares(real.summary.classes, others[real.summary.labels], names)
    else:
        own, names = numbers_among(samples.class_names, real.class_names), real.class_names
        if own is None or real.summary is None or len(real.summary.pooled) <= VOTERS:
            notes.append("the classes of the samples are not those of the reference, so there is no accuracy")
            return
        scores["accuracy_by"] = f"the {VOTERS} nearest real pictures"
        known, voters = real.summary.pooled, real.summary.labels
        classes, labels = vote(samples.summary.pooled, known, voters), own[samples.summary.labels]
        of_class = shares(vote(known, known, voters), voters, names)
    scores["accuracy"] = float((classes == labels).double().mean())
    scores["accuracy_per_class"] = shares(classes, labels, names)
    if of_class:
        of_real["accuracy_per_class"] = of_class
        asked = [names[label] for label in labels.tolist()]
        if lacking := sorted(set(asked) - of_class.keys()):
            notes.append(f"the reference has no picture of {', '.join(lacking)}, so its accuracy is by class alone")
        else:
            of_real["accuracy"] = sum(map(of_class.get, asked)) / len(asked)


def numbers_among(names: Sequence[str], others: Sequence[str]) -> Tensor | None:
    """(N,) int64: the place of each name among the others; None where one is not there, or not told from another."""
    if list(names) == list(others):
        return torch.arange(len(names))
    places = {name: place for place, name in enumerate(others)}
    if len(places) < len(others) or not set(names) <= places.keys():
        return None
    return torch.tensor([places[name] for name in names], dtype=torch.int64)


def shares(classes: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Of classes seen and labels (N,): the share that agrees of each class that has pictures, by its name."""
    right = (classes == labels).double()
    return {names[label]: float(right[labels == label].mean()) for label in labels.unique().tolist()}

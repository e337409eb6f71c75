"""All measures of samples against real pictures, and what has to be said of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .classifier_score import PART
from .features import Extractor, split
from .frechet import Statistics, frechet_distance
from .inception import InceptionExtractor
from .kid import kernel_distance
from .neighbours import DENSITY_NEIGHBOURS, VOTERS, compare_neighbours, vote
from .summary import Summary

# Counts up when the same pictures get other figures.
VERSION = 2
METRICS = ("fd", "sfd", "kid", "cs", "pr", "accuracy")
# Below, the Frechet distance is too large by chance alone; papers take 50 000.
ENOUGH = 10_000
Figures = dict[str, Any]


def figure_names(score: str) -> dict[str, str]:
    """What the figures of a network are called, by their keys; score: the name of its Frechet distance.

    FID, sFID, KID and Inception Score are those of Inception alone: of another network nobody may take them for these.
    """
    if score == InceptionExtractor.score:
        return {"fd": "FID", "sfd": "sFID", "kid": "KID", "classifier_score": "Inception Score"}
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


def measure(
    samples: Side, real: Side, extractor: Extractor, metrics: Collection[str]
) -> tuple[Figures, Figures, list[str]]:
    """The figures of the samples, those of real pictures (of distances and neighbours see `floor`), and notes.

    fd, sfd: Frechet distance and that of the features with places. kid, kid_std; classifier_score and its _std;
    precision, recall, density, coverage; accuracy and accuracy_per_class: shares in [0, 1] of the class asked for. What
    cannot be had is left out, with a note. Raises ValueError where features are unfit.
    """
    scores, of_real, notes = {}, {}, size_notes(samples, real, metrics)
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
        own, others = samples.summary.pooled, real.summary.pooled
        scores |= compare_pictures(own, others, metrics)
        if "precision" in scores:
            if len(own) < len(others):
                notes.append(f"{len(own)} samples cover fewer of {len(others)} real pictures than as many would")
        elif "pr" in metrics:
            notes.append(f"{min(len(own), len(others))} pictures are too few for nearest neighbours, so there is no pr")
        if {"fd", "kid", "pr"} & set(metrics):
            of_real |= floor(samples, real, metrics)
    if "accuracy" in metrics and samples.class_names:
        add_accuracy(samples, real, extractor, scores, of_real, notes)
    return scores, of_real, notes


def compare_pictures(own: Tensor, others: Tensor, metrics: Collection[str]) -> Figures:
    """Of features (N, F) and (M, F): kid, kid_std; precision and so on, where they are enough to have neighbours."""
    figures: Figures = {}
    if "kid" in metrics:
        figures["kid"], figures["kid_std"] = kernel_distance(own, others)
    if "pr" in metrics and min(len(own), len(others)) > DENSITY_NEIGHBOURS:
        figures |= asdict(compare_neighbours(own, others))
    return figures


def floor(samples: Side, real: Side, metrics: Collection[str]) -> Figures:
    """What real pictures score against all others of them, drawn once: as many as samples, and of the same classes
    where they are known, but at most half.

    drawn: how many. Empty where they are too few to say anything.
    """
    labels, wanted = torch.zeros_like(real.summary.labels), torch.zeros_like(samples.summary.labels)
    numbers = numbers_among(samples.class_names, real.class_names)
    if samples.class_names and numbers is not None:
        labels, wanted = real.summary.labels, numbers[samples.summary.labels]
    drawn, others = split(real.summary.pooled, labels, wanted, seed=0)
    if len(drawn) <= DENSITY_NEIGHBOURS:
        return {}
    figures = {"drawn": len(drawn)} | compare_pictures(drawn, others, metrics)
    if "fd" in metrics:
        figures["fd"] = frechet_distance(Statistics.of(drawn), Statistics.of(others))
    return figures


def size_notes(samples: Side, real: Side, metrics: Collection[str]) -> list[str]:
    """What too few pictures do to the figures."""
    notes, features, count = [], len(samples.statistics.mean), samples.statistics.count
    if "cs" in metrics and count < PART:
        notes.append(f"the classifier score of {count} pictures is biased downwards, as of fewer than {PART}")
    if not {"fd", "sfd"} & set(metrics):
        return notes
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

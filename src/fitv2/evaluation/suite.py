"""All measures of samples against real pictures, and what has to be said of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .features import Extractor
from .frechet import Statistics, frechet_distance
from .kid import kernel_distance
from .neighbours import DENSITY_NEIGHBOURS, VOTERS, compare_neighbours, vote
from .summary import Summary

# Counts up when the same pictures get other figures.
VERSION = 1
METRICS = ("fd", "sfd", "kid", "is", "pr", "accuracy")
# Below, the Frechet distance is too large by chance alone; papers take 50 000.
ENOUGH = 10_000
Figures = dict[str, Any]


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
    """The figures of the samples, those of the real pictures where they have any, and notes in sentences.

    fd, sfd: Frechet distance and that of the features with places. kid, kid_std; inception_score and its _std;
    precision, recall, density, coverage; accuracy and accuracy_per_class: shares in [0, 1] of the class asked for. What
    cannot be had is left out, with a note. Raises ValueError where features are unfit.
    """
    scores, of_real, notes = {}, {}, size_notes(samples, real)
    if "fd" in metrics:
        scores["fd"] = frechet_distance(samples.statistics, real.statistics)
    if "sfd" in metrics:
        if real.spatial is None:
            notes.append("the reference has no statistics of features with places, so there is no sfd")
        else:
            scores["sfd"] = frechet_distance(samples.spatial, real.spatial)
    if "is" in metrics:
        scores["inception_score"], scores["inception_score_std"] = samples.summary.score.tolist()
        if real.summary is not None:
            of_real["inception_score"], of_real["inception_score_std"] = real.summary.score.tolist()
    if real.summary is None:
        if left := sorted({"kid", "pr"} & set(metrics)):
            notes.append(f"the reference has statistics and no pictures, so there is no {' and no '.join(left)}")
    else:
        own, others = samples.summary.pooled, real.summary.pooled
        if "kid" in metrics:
            scores["kid"], scores["kid_std"] = kernel_distance(own, others)
        if "pr" in metrics and min(len(own), len(others)) > DENSITY_NEIGHBOURS:
            scores |= asdict(compare_neighbours(own, others))
            if len(own) < len(others):
                notes.append(f"{len(own)} samples cover fewer of {len(others)} real pictures than as many would")
        elif "pr" in metrics:
            notes.append(f"{min(len(own), len(others))} pictures are too few for nearest neighbours, so there is no pr")
    if "accuracy" in metrics and samples.class_names:
        add_accuracy(samples, real, extractor, scores, of_real, notes)
    return scores, of_real, notes


def size_notes(samples: Side, real: Side) -> list[str]:
    """What too few pictures do to the Frechet distance."""
    notes, features = [], len(samples.statistics.mean)
    count = samples.statistics.count
    if count < ENOUGH:
        notes.append(f"the Frechet distance of {count} pictures is biased upwards; compare it only at equal numbers")
    for whose, side in (("samples", samples), ("real pictures", real)):
        if 0 < side.statistics.count <= features:
            notes.append(
                f"{side.statistics.count} {whose} are fewer than make {features} features' covariance one of full "
                "rank: KID is the better figure"
            )
    return notes


def add_accuracy(
    samples: Side, real: Side, extractor: Extractor, scores: Figures, of_real: Figures, notes: list[str]
) -> None:
    """How many samples show the class that was asked for: as the extractor sees it where it knows their classes, else
    as the five nearest real pictures do.
    """
    own = numbers_among(samples.class_names, extractor.class_names or [])
    if own is not None:
        names = extractor.class_names
        scores["accuracy_by"] = extractor.name
        scores |= shares(samples.summary.classes, own[samples.summary.labels], names)
        others = numbers_among(real.class_names, names)
        if real.recognised is not None:
            of_real["accuracy"] = sum(real.recognised.values()) / len(real.recognised)
            of_real["accuracy_per_class"] = real.recognised
        elif real.summary is not None and real.class_names and others is not None:
            of_real |= shares(real.summary.classes, others[real.summary.labels], names)
        return
    own = numbers_among(samples.class_names, real.class_names)
    if own is None or real.summary is None or len(real.summary.pooled) <= VOTERS:
        notes.append("the classes of the samples are not those of the reference, so there is no accuracy")
        return
    known, labels = real.summary.pooled, real.summary.labels
    scores["accuracy_by"] = f"the {VOTERS} nearest real pictures"
    scores |= shares(vote(samples.summary.pooled, known, labels), own[samples.summary.labels], real.class_names)
    of_real |= shares(vote(known, known, labels), labels, real.class_names)


def numbers_among(names: Sequence[str], others: Sequence[str]) -> Tensor | None:
    """(N,) int64: the place of each name among the others; None where one is not there, or not told from another."""
    if list(names) == list(others):
        return torch.arange(len(names))
    places = {name: place for place, name in enumerate(others)}
    if len(places) < len(others) or not set(names) <= places.keys():
        return None
    return torch.tensor([places[name] for name in names], dtype=torch.int64)


def shares(classes: Tensor, labels: Tensor, names: Sequence[str]) -> Figures:
    """Of classes seen and labels (N,): the share that agrees, in all and by class, of classes that have pictures."""
    right = (classes == labels).double()
    per_class = {names[label]: float(right[labels == label].mean()) for label in labels.unique().tolist()}
    return {"accuracy": float(right.mean()), "accuracy_per_class": per_class}

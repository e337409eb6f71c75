"""How good a model of garments is: its distance to the real pictures of a view, and how many are what they should be.

A view is the data of a recipe as one preprocessing sees them, such as all cropped to squares. As the reference of ADM,
it is of the training pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ..atomic import write_tensors
from ..build import build_dataset
from ..config import Recipe
from ..data.fashion import CLASS_NAMES
from ..evaluation.classifier import examine, load_classifier
from ..evaluation.frechet import Statistics, frechet_distance
from ..evaluation.kid import kernel_distance
from ..evaluation.neighbours import compare_neighbours
from ..evaluation.scores import classifier_digest
from ..evaluation.wishes import SEEDS
from ..generate import Sampling, Wish, generate
from ..model.network import Network
from ..pretrained import shapes_of
from .definition import digest
from .record import Scores

# Changes when other pictures would be made or seen otherwise, so that those of before are not taken for them.
PROTOCOL = "study-garments-1"
# Of a curve's points; the end has more.
CURVE_SCORES = ("distance", "recognised")
SCORES = (*CURVE_SCORES, "kid", "precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class Reference:
    """A view's real pictures: features (N, 64), and per class (height, width, count) as `shapes_of` has them."""

    features: Tensor
    shapes: list[list[tuple[int, int, int]]]

    @cached_property
    def statistics(self) -> Statistics:
        return Statistics.of(self.features)

    @property
    def sides(self) -> set[int]:
        """Every height and width."""
        return {side for of_class in self.shapes for *size, _ in of_class for side in size}

    def wishes(self, images: int, seed: int) -> list[Wish]:
        """Classes in turn, each picture in the shape of a random real one of its class, its noise fixed by its number.

        Raises ValueError for more pictures than seeds may have.
        """
        if images > SEEDS:
            raise ValueError(f"a score takes at most {SEEDS} pictures, not {images}")
        return [
            Wish(label, self.draw(label, (seed, number)), seed * SEEDS + number)
            for number in range(images)
            for label in [number % len(self.shapes)]
        ]

    def draw(self, label: int, seed: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) of a random real picture of the class."""
        shapes = self.shapes[label]
        counts = np.array([count for _, _, count in shapes])
        height, width, _ = shapes[np.random.default_rng(seed).choice(len(shapes), p=counts / counts.sum())]
        return height, width


def load_reference(recipe: Recipe, cache: Path) -> Reference:
    """The view that a recipe's data are, its features kept in the folder `cache`.

    Raises ValueError for pictures other than the ten garments.
    """
    dataset = build_dataset(recipe.data, recipe.model.patch_size)
    if list(dataset.class_names) != CLASS_NAMES or dataset.channels != 1:
        raise ValueError("scores of a study are for the ten garments (data.source: fashion)")
    path = features_path(recipe, cache)
    try:
        features = load(path.read_bytes())["features"]
    except (OSError, SafetensorError, KeyError):  # Not there yet, or damaged.
        view = dataset.epoch(0, 0)
        features, _ = examine(load_classifier(), [view.latent(i) for i in range(len(dataset))])
        write_tensors(path, {"features": features})
    return Reference(features, shapes_of(dataset))


def features_path(recipe: Recipe, cache: Path) -> Path:
    """Where the features of a view are kept."""
    about = [PROTOCOL, classifier_digest(), data_of(recipe)]
    return cache / f"{digest(about)}.safetensors"


def data_of(recipe: Recipe) -> dict[str, Any]:
    """What fixes a view's pictures, as JSON takes it."""
    return recipe.data.model_dump(mode="json", exclude_defaults=True)


def examined(
    model: Network, wishes: Sequence[Wish], sampling: Sampling, done: Callable[[int], None]
) -> dict[str, Tensor] | None:
    """What the classifier sees in a model's pictures: features (N, 64), classes (N,), and the labels asked for (N,).

    None where a picture is not finite. done: gets 1 after each picture.
    """
    latents = generate(model, wishes, sampling, lambda *_: done(1))
    if not all(bool(latent.isfinite().all()) for latent in latents):
        return None
    features, classes = examine(load_classifier(), latents)
    return {"features": features, "classes": classes, "labels": torch.tensor([wish.label for wish in wishes])}


def curve_scores(seen: dict[str, Tensor] | None, reference: Reference) -> Scores:
    """distance: Frechet distance of features. recognised: share whose top-1 class is the one asked for.

    All None where there is nothing to compare.
    """
    if seen is None:
        return dict.fromkeys(CURVE_SCORES)
    return {
        "distance": frechet_distance(Statistics.of(seen["features"]), reference.statistics),
        "recognised": float((seen["classes"] == seen["labels"]).double().mean()),
    }


def final_scores(seen: dict[str, Tensor] | None, reference: Reference) -> Scores:
    """The same, and what other measures say of the features: see `fitv2.evaluation`."""
    if seen is None:
        return dict.fromkeys(SCORES)
    kid, _ = kernel_distance(seen["features"], reference.features)
    neighbours = asdict(compare_neighbours(seen["features"], reference.features))
    return curve_scores(seen, reference) | {"kid": kid} | neighbours

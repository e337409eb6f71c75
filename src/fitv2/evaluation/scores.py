"""The score of a model of garments: how many are recognised as what they should be, and how far they are from real.

Protocol "fashion-fd64": pictures balanced over the ten classes, each in a shape drawn from the bundled real garments of
its class; the shipped classifier's top-1 class and its 64 features; Frechet distance to the 10 000 real test pictures.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from typing import Literal

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ..checkpoints.model_folder import Pretrained
from ..data.fashion import CLASS_NAMES, bundled, to_latent
from ..errors import UserError
from ..generate import Sampling, Wish, generate, scaled_size
from ..randomness import Purpose, numpy_generator
from .classifier import WEIGHTS, examine, load_classifier
from .frechet import Statistics, frechet_distance
from .suite import ENOUGH
from .wishes import SEEDS

PROTOCOL = "fashion-fd64"
TEST_STATISTICS = files("fitv2.evaluation").joinpath("fashion-test-statistics.safetensors")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The result, and all that is needed to get it again.

    recognised: share in [0, 1] of pictures whose top-1 class is the class asked for; recognised_real: that of the real
    test pictures. distance: to the test pictures; distance_real: of the bundled 10 000 training pictures to the test
    pictures, and distance_real_as_many of num_images of them; ratio: distance over distance_real, fair from 10 000
    images on. scale, turned: see `balanced_wishes`. model_calls: as `Sampling.model_calls`. seconds: that the
    pictures took. classifier: the first 16 digits of the SHA-256 of the classifier's weights.
    """

    protocol: str
    classifier: str
    num_images: int
    seed: int
    scale: float
    turned: bool
    precision: str
    sampling: Sampling
    model_calls: int | None
    seconds: float
    recognised: float
    recognised_real: float
    recognised_per_class: dict[str, float]
    recognised_real_per_class: dict[str, float]
    distance: float
    distance_real: float
    distance_real_as_many: float
    ratio: float


@dataclass(frozen=True)
class Reference:
    """The real test pictures: their features, and the share of each class (in order) that is recognised."""

    statistics: Statistics
    recognised_per_class: list[float]


def score_garments(
    pretrained: Pretrained,
    sampling: Sampling,
    num_images: int = ENOUGH,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    precision: Literal["float32", "bf16"] = "float32",
    scale: float = 1.0,
    turned: bool = False,
) -> Scores:
    """Generates `num_images` garments and scores them by the protocol above.

    progress gets the number of images just finished; precision "bf16" runs the model under autocast.
    Raises ValueError for a model of other classes, for fewer images than classes or more than a million, and for
    another precision.
    """
    if precision not in ("float32", "bf16"):
        raise UserError(f"the precision is float32 or bf16, not {precision!r}")
    wishes = balanced_wishes(pretrained, num_images, seed, scale, turned)
    if num_images < ENOUGH:
        logger.warning(
            "the Frechet distance of %d images is biased upwards; compare it only at equal numbers", num_images
        )
    device = next(pretrained.model.parameters()).device.type
    start = time.perf_counter()
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        latents = generate(pretrained.model, wishes, sampling, lambda *_: progress and progress(1))
    seconds = time.perf_counter() - start
    features, classes = examine(load_classifier(), latents)
    reference, distance_real = load_reference(), real_distance()
    labels = torch.tensor([wish.label for wish in wishes])
    shares = shares_recognised(classes, labels)
    distance = frechet_distance(Statistics.of(features), reference.statistics)
    return Scores(
        protocol=PROTOCOL,
        classifier=classifier_digest(),
        num_images=num_images,
        seed=seed,
        scale=scale,
        turned=turned,
        precision=precision,
        sampling=sampling,
        model_calls=sampling.model_calls,
        seconds=seconds,
        recognised=float((classes == labels).double().mean()),
        recognised_real=sum(reference.recognised_per_class) / len(reference.recognised_per_class),
        recognised_per_class=dict(zip(CLASS_NAMES, shares, strict=True)),
        recognised_real_per_class=dict(zip(CLASS_NAMES, reference.recognised_per_class, strict=True)),
        distance=distance,
        distance_real=distance_real,
        distance_real_as_many=real_distance(num_images),
        ratio=distance / distance_real,
    )


def balanced_wishes(
    pretrained: Pretrained, num_images: int, seed: int, scale: float = 1.0, turned: bool = False
) -> list[Wish]:
    """Classes in turn; shapes drawn from the bundled garments of each class; seeds counted on from `seed`.

    scale: factor on both sides, rounded to the patch, for sizes that training never had. turned: height and width
    exchanged, for shapes foreign to the class.
    """
    if pretrained.class_names != CLASS_NAMES or pretrained.model.config.in_channels != 1:
        raise UserError(f"{PROTOCOL} is for models of the ten garments; this one has {pretrained.class_names}")
    if not len(CLASS_NAMES) <= num_images <= SEEDS:
        raise UserError(f"{PROTOCOL} takes {len(CLASS_NAMES)} to {SEEDS} images, not {num_images}")
    sizes = [draw_sizes(label, num_images, (seed, label)) for label in range(len(CLASS_NAMES))]
    patch = pretrained.model.config.patch_size

    def reshaped(size: tuple[int, int]) -> tuple[int, int]:
        height, width = scaled_size(size, scale, patch)
        return (width, height) if turned else (height, width)

    return [
        Wish(label, reshaped(sizes[label][turn]), seed * SEEDS + i)
        for i in range(num_images)
        for turn, label in [divmod(i, len(CLASS_NAMES))]
    ]


def draw_sizes(label: int, number: int, seed: tuple[int, int]) -> list[tuple[int, int]]:
    """`number` pairs (height, width) in pixels of bundled garments of the class, drawn with replacement."""
    garments = bundled()
    own = garments.hw[garments.labels == label] * garments.patch_size
    return [(h, w) for h, w in own[numpy_generator(Purpose.REQUESTS, *seed).integers(len(own), size=number)].tolist()]


def shares_recognised(classes: Tensor, labels: Tensor) -> list[float]:
    """Per class in order, the share of the pictures of that label whose recognised class it is; both (N,) int64."""
    right = (classes == labels).double()
    return [float(right[labels == label].mean()) for label in range(len(CLASS_NAMES))]


def load_reference() -> Reference:
    """What is shipped about the test pictures, which themselves are not."""
    with as_file(TEST_STATISTICS) as path:
        with safe_open(path, "pt") as file:
            shares = json.loads(file.metadata()["recognised_per_class"])
        return Reference(Statistics.load(path), shares)


def real_distance(number: int = ENOUGH) -> float:
    """Frechet distance of `number` of the bundled 10 000 training pictures, balanced over the classes, to the test
    pictures; of all of them where more are asked for. With few pictures it is large by chance alone.
    """
    in_turns = np.argsort(bundled().labels, kind="stable").reshape(len(CLASS_NAMES), -1).T.flatten()
    chosen = real_features()[torch.from_numpy(in_turns[:number])]
    return frechet_distance(Statistics.of(chosen), load_reference().statistics)


@cache
def real_features() -> Tensor:
    """(10 000, 64) features of the bundled training pictures."""
    return examine(load_classifier(), [to_latent(picture) for picture in bundled().pictures])[0]


def classifier_digest() -> str:
    """The first 16 digits of the SHA-256 of the shipped weights."""
    return hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()[:16]

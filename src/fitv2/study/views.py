"""The real pictures that models of a study are compared with, as people see them: 8-bit, each as a view has it.

A view is the data of a recipe as one preprocessing sees them, such as all cropped to squares. As the reference of ADM,
it is of the training pictures.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..build import build_dataset, holds_latents
from ..checkpoints.model_folder import shapes_of
from ..data.dataset import Dataset
from ..data.images import variants
from ..device import choose_device
from ..errors import UserError
from ..evaluation.extractors import load_extractor
from ..evaluation.features import Extractor
from ..evaluation.protocols import cover
from ..evaluation.suite import numbers_among
from ..evaluation.summary import Summary, kept_summary, summarise
from ..hashes import json_digest
from ..model.config import NetworkConfig
from ..model.presets import architecture_of
from ..settings import DataSettings
from ..sheets import to_image
from .conditions import FEWEST, Condition, Evaluation
from .definition import Study


@cache
def extractor_of(name: str) -> Extractor:
    """The network that sees the pictures, loaded once in a process. Raises ValueError where it is not installed."""
    return load_extractor(name, str(choose_device()))


def load_views(study: Study, factor: int, cache: Path) -> dict[str, View]:
    """The views of a study by name, for models with `factor` pixels a latent pixel. Raises ValueError as `View`."""
    return {name: View(name, study, factor, cache) for name in study.evaluation.views}


class View:
    """The pictures of a view. factor: pixels a latent pixel; cache: a folder for what is seen in them.

    Raises ValueError for data that are no pictures, too few, or not there.
    """

    def __init__(self, name: str, study: Study, factor: int, cache: Path) -> None:
        recipe = study.view_recipe(name)
        data, patch = recipe.data, recipe.model.patch_size * factor
        self.name, self.data, self.patch, self.factor, self.cache = name, data, patch, factor, cache
        self.extractor = extractor_of(study.evaluation.extractor)
        self.known: dict[tuple[int, int] | None, Summary] = {}
        scan = cache / f"pictures-{json_digest([data_of(data), patch])[:16]}.json"
        if holds_latents(data):
            raise UserError(
                f"the view {name} holds latents ({data.source}), and models are compared with pictures: name the "
                "folder that the latents were made of, as data.source of each view"
            )
        self.dataset = build_dataset(data, patch, scan)
        if len(self.dataset) < 2 * FEWEST:
            number = len(self.dataset)
            raise UserError(f"the view {name} has {number} pictures, and a study compares with {2 * FEWEST} at least")

    @cached_property
    def shapes(self) -> list[list[tuple[int, int, int]]]:
        """Per class the (height, width, count) in latent pixels, as `shapes_of` has them."""
        f = self.factor
        return [[(h // f, w // f, count) for h, w, count in of_class] for of_class in shapes_of(self.dataset)]

    def sizes(self, condition: Condition) -> set[tuple[int, int]]:
        """Every (height, width) in pixels that a condition asks for."""
        if condition.pixels is not None:
            return {condition.pixels}
        return {(h * self.factor, w * self.factor) for of_class in self.shapes for h, w, _ in of_class}

    def pixels(self, condition: Condition) -> float:
        """Of a mean picture that a condition asks for."""
        if condition.pixels is not None:
            return math.prod(condition.pixels)
        return float(self.dataset.epoch(0, 0).hw.prod(1).mean()) * self.patch**2

    def images(self, size: tuple[int, int] | None) -> Iterator[Image.Image]:
        """All of them in order; with a (height, width), scaled to cover it and cut."""
        view = self.dataset.epoch(0, 0)
        for index in range(len(self.dataset)):
            image = to_image(view.latent(index))
            yield image if size is None else cover(image, size)

    def seen(self, size: tuple[int, int] | None) -> Summary:
        """What the study's extractor sees in them: kept in memory, and in a file by their contents."""
        if size not in self.known:
            self.known[size] = self.look(size)
        return self.known[size]

    def look(self, size: tuple[int, int] | None) -> Summary:
        extractor, content = self.extractor, hashlib.sha256(self.labels.tobytes())
        for image in self.images(size):
            content.update(repr((image.mode, image.size)).encode() + image.tobytes())
        images = (image.convert(extractor.mode) for image in self.images(size))
        return kept_summary(
            self.cache,
            extractor,
            [content.hexdigest()],
            lambda: summarise(extractor, images, self.labels, lambda _: None),
        )

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64, all 0 where there are no classes."""
        return self.dataset.epoch(0, 0).labels

    @cached_property
    def classes(self) -> Tensor | None:
        """The place of each class among those of the extractor; None where it does not know them all."""
        names = list(self.dataset.class_names)
        return numbers_among(names, self.extractor.class_names or []) if names else None

    @cached_property
    def cut(self) -> tuple[float, float] | None:
        """The mean and the largest share of a picture that the view leaves out; None where whole sizes are not known.

        Algorithm 1's crop is of the central square.
        """
        sizes = getattr(self.dataset, "sizes", None)
        if sizes is None:
            return None
        mean, most = 0.0, 0.0
        for height, width in sizes.tolist():
            drawn = variants(height, width, self.data.max_tokens, self.patch, self.data.preprocessing)
            cut = 1 - min(height, width) / max(height, width)
            mean += cut * drawn.count("crop") / len(drawn) / len(sizes)
            most = max(most, cut * ("crop" in drawn))
        return mean, most


def croppable(dataset: Dataset, data: DataSettings, patch: int) -> dict[str, float] | None:
    """Per class, the share of pictures that mixed preprocessing crops in some epochs: those with both sides above the
    square of the token budget (Algorithm 1).

    patch: in pixels. None where whole sizes are not known.
    """
    sizes = getattr(dataset, "sizes", None)
    if sizes is None:
        return None
    cropped = np.array(["crop" in variants(h, w, data.max_tokens, patch, "mixed") for h, w in sizes.tolist()])
    names, labels = dataset.class_names or ["pictures"], dataset.epoch(0, 0).labels
    return {name: float(cropped[labels == label].mean()) for label, name in enumerate(names) if label in labels}


def data_of(data: DataSettings) -> dict[str, Any]:
    """What fixes a view's pictures, as JSON takes it."""
    content = data.model_dump(mode="json", exclude_defaults=True)
    content |= {"max_tokens": data.max_tokens, "preprocessing": data.preprocessing}  # As in records of older versions.
    return {key: value for key, value in content.items() if (key, value) != ("source", "fashion")}


def possible(evaluation: Evaluation, config: NetworkConfig, views: dict[str, View]) -> list[Condition]:
    """Conditions of the end that models of that configuration can meet, in their order.

    One of a fixed grid makes its square alone; see also `Condition.suits`. Raises ValueError where the point of the
    curve is none of them.
    """

    def has_its_shapes(condition: Condition) -> bool:
        unit = config.patch_size * views[condition.view].factor
        return config.fixed_grid is None or views[condition.view].sizes(condition) == {
            tuple(side * unit for side in config.fixed_grid)
        }

    found = [c for c in evaluation.final if c.suits(config) and has_its_shapes(c)]
    if evaluation.point not in found:
        raise UserError(f"{architecture_of(config)} cannot make the pictures of '{evaluation.point.name}'")
    return found

"""From a recipe to objects: the one place that maps settings to classes."""

from __future__ import annotations

import math
from pathlib import Path

from .config import DataSettings, Recipe, TrainingSettings
from .data import fashion
from .data.dataset import Dataset
from .data.folder import ImageFolder
from .flow.path import TimeDensity
from .model.rope import RopeScheme
from .model.transformer import FiTConfig


def build_dataset(data: DataSettings, patch_size: int, cache_file: Path | None = None) -> Dataset:
    """The data set of a recipe. Raises ValueError where the data is not there or does not fit the model."""
    if data.source != "fashion":
        return ImageFolder(
            Path(data.source),
            max_tokens=data.max_tokens,
            patch=patch_size,
            channels=data.channels,
            preprocessing=data.preprocessing,
            flip=data.flip,
            min_scale=data.min_scale,
            cache_file=cache_file,
        )
    if patch_size != fashion.PATCH:
        raise ValueError(f"fashion is cut into patches of {fashion.PATCH}; set model.patch_size={fashion.PATCH}")
    if data.split == "bundled":
        return fashion.bundled(data.min_scale)
    return fashion.full("train", data.folder, data.min_scale)


def build_model_config(recipe: Recipe, dataset: Dataset) -> FiTConfig:
    """The network of a recipe, with channels, classes and the size where extrapolation begins from the data."""
    most_tokens = int(dataset.epoch(0, 0).hw.prod(1).max())
    rope = RopeScheme(train_side=max(math.isqrt(most_tokens), 2))
    data = {"in_channels": dataset.channels, "num_classes": dataset.num_classes}
    return FiTConfig(**recipe.model.model_dump(), **data, rope=rope)


def build_density(training: TrainingSettings) -> TimeDensity:
    """The density of training times."""
    return TimeDensity(kind=training.time_density, mean=training.time_mean, std=training.time_std)

"""What the tests of evaluations have in common; a plugin of pytest for its fixtures."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fitv2.data import fashion
from fitv2.data.fashion import bundled
from fitv2.evaluation.comparison import METRICS
from fitv2.evaluation.evaluate import Evaluation
from fitv2.evaluation.extractors import GarmentExtractor, extract
from fitv2.evaluation.image_sets import Images, open_images
from fitv2.evaluation.inputs import Reference, Samples, balanced_subset, given_samples
from image_folders import noise
from tiny import CLASSES


def silent(what: str, total: int) -> AbstractContextManager:
    """A progress that nobody sees."""
    return nullcontext(lambda count: None)


@pytest.fixture(scope="session")
def garments(tmp_path_factory) -> Path:
    """Eight real garments of each class, in a folder per class; no test may change it."""
    root, real = tmp_path_factory.mktemp("garments"), bundled()
    for index in balanced_subset(real.labels, 80):
        path = root / CLASSES[real.labels[index]] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.ascontiguousarray(real.images[index])).save(path)
    return root


@pytest.fixture
def isolated(tmp_path, monkeypatch) -> None:
    """Hides cached features, and garments that may be installed."""
    monkeypatch.setenv("FITV2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fashion, "DEBIAN_FOLDER", tmp_path / "not installed")


def noises(path: Path, number: int, size: tuple[int, int]) -> Path:
    """An archive of noise."""
    np.savez(path, arr_0=np.stack([np.asarray(noise(*size, seed)) for seed in range(number)]))
    return path


def evaluation(reference: Reference, tmp_path: Path, **changes) -> Evaluation:
    usual = Evaluation(
        reference=reference,
        extractor=GarmentExtractor("cpu"),
        metrics=METRICS,
        protocol=None,
        cache=tmp_path / "cache",
        kept=tmp_path / "kept",
        progress=silent,
    )
    return replace(usual, **changes)


def classified(images: Iterable[np.ndarray | Image.Image]) -> tuple[Tensor, Tensor]:
    """Features (N, 64) of the classifier of garments, and the classes (N,) that it recognises."""
    pillow = (image if isinstance(image, Image.Image) else Image.fromarray(image) for image in images)
    found = [*extract(GarmentExtractor("cpu"), pillow, lambda count: None)]
    return torch.cat([block.pooled for block in found]), torch.cat([b.probabilities for b in found]).argmax(1)


def samples_of(name: Path | str, tmp_path: Path, number: int | None = None) -> Samples:
    """The samples of all sizes that there are under a name."""
    (samples,) = given_samples(open_images(str(name), tmp_path), [], number)
    return samples


def read_all(images: Images, mode: str = "RGB") -> list[np.ndarray]:
    return [np.asarray(image) for image in images.read(range(len(images)), mode, lambda image: image)]

"""Shows what a training will see before it starts: class counts, and a sheet of images as the model sees them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..autoencoder import load_autoencoder
from ..data.dataset import Dataset
from ..data.images import UnreadableImage
from ..errors import UserError
from ..messages import counted
from ..sheets import contact_sheet, save_sheet, to_image

logger = logging.getLogger(__name__)
# Classes that are listed, images on a sheet, and latents on one, each of which takes a moment to decode.
TOLD, IMAGES, LATENTS = 20, 64, 16


def class_lines(dataset: Dataset) -> Iterator[str]:
    """The classes with their numbers of images, in the order of their labels."""
    counts = np.bincount(dataset.epoch(0, 0).labels, minlength=max(dataset.num_classes, 1)).tolist()
    images = counted(len(dataset), "image")
    if not dataset.num_classes:
        yield f"training on {images} without classes"
        return
    yield f"training on {images} in {counted(dataset.num_classes, 'class', 'classes')}:"
    for label, count in enumerate(counts[:TOLD]):
        yield f"  {label} {name_of(dataset, label)}: {count:,}"
    if len(counts) > TOLD:
        yield f"  and {counted(len(counts) - TOLD, 'more class', 'more classes')}"


def name_of(dataset: Dataset, label: int) -> str:
    return dataset.class_names[label] if dataset.class_names else f"class {label}"


def write_inputs(path: Path, dataset: Dataset, seed: int) -> None:
    """Writes a sheet of images as the first epoch takes them: resized or cropped, mirrored, latents decoded.

    It shows at most 64 images, or 16 latents, of as many classes as possible. If latents cannot be decoded, a log line
    says so instead.
    """
    view = dataset.epoch(0, seed)
    try:
        codec = load_autoencoder(dataset.autoencoder, "cpu")
    except (UserError, OSError, ImportError) as error:
        logger.warning("no %s: the latents cannot be decoded (%s)", path.name, error)
        return
    images, captions = [], []
    for index in spread_over_classes(view.labels, IMAGES if dataset.autoencoder is None else LATENTS):
        try:
            image = to_image(codec.decode(view.latent(index)))
        except UnreadableImage as error:
            logger.warning("not in %s: %s", path.name, error)
            continue
        label = int(view.labels[index])
        images.append(image)
        captions.append(name_of(dataset, label) if dataset.num_classes else f"{image.height}x{image.width}")
    if images:
        save_sheet(contact_sheet(images, captions), path)


def spread_over_classes(labels: np.ndarray, number: int) -> list[int]:
    """Indices of at most `number` images: one of each class, then a second one of each, and so on; in class order."""
    order = np.argsort(labels, kind="stable")
    turn = np.arange(len(order)) - np.searchsorted(labels[order], labels[order])
    chosen = order[np.argsort(turn, kind="stable")[:number]]
    return chosen[np.argsort(labels[chosen], kind="stable")].tolist()

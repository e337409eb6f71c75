"""Shows what a training will see before it starts: class counts, and a sheet of images as the model sees them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..data.dataset import Dataset
from ..data.formats import UnreadableImage
from ..data.labelling import class_lines, count_classes
from ..errors import UserError
from ..images.autoencoder import load_autoencoder
from ..images.sheets import contact_sheet, save_sheet, to_image
from ..messages import counted
from ..settings.recipe import TrainingSettings
from .holdout import FEWEST, held_out_of, measures

logger = logging.getLogger(__name__)
# Images on a sheet; fewer latents, because decoding them takes time.
IMAGES, LATENTS = 64, 16


def data_lines(dataset: Dataset, training: TrainingSettings) -> Iterator[str]:
    """Yields lines for people: the number of images, and the classes with their numbers of images."""
    held_out, wanted = held_out_of(dataset, training), measures(training)
    labels = np.delete(dataset.labels, held_out)
    others = f", and {'measuring' if wanted else 'not on'} {len(held_out)} others that are held out"
    yield f"training on {counted(len(labels), 'image')}{others if len(held_out) else ''}"
    if dataset.unread_captions:
        yield "  their captions are not used; with --set model.context=joint the model will take prompts"
    if wanted and not len(held_out):
        yield f"  none is held out: that takes at least {counted(FEWEST, 'image')}"
    yield from (f"  {line}" for line in class_lines(count_classes(labels, class_names(dataset))))


def class_names(dataset: Dataset) -> list[str]:
    """Returns the names of the classes, or numbers where they have none."""
    return list(dataset.class_names) or [f"class {label}" for label in range(dataset.num_classes)]


def write_inputs(path: Path, dataset: Dataset, seed: int) -> None:
    """Writes a sheet of images as the first epoch has them: resized or cropped, mirrored, latents decoded.

    It shows at most 64 images, or 16 latents, of all classes in turn; a log line if latents cannot be decoded.
    """
    view = dataset.epoch(0, seed)
    try:
        codec = load_autoencoder(dataset.autoencoder, "cpu")
    except (UserError, OSError, ImportError) as error:
        logger.warning("no %s: the latents cannot be decoded (%s)", path.name, error)
        return
    images, captions, names = [], [], class_names(dataset)
    for index in spread_over_classes(view.labels, IMAGES if dataset.autoencoder is None else LATENTS):
        try:
            image = to_image(codec.decode(view.load(index)))
        except UnreadableImage as error:
            logger.warning("not in %s: %s", path.name, error)
            continue
        images.append(image)
        label = names[view.labels[index]] if view.labels[index] < len(names) else f"{image.height}x{image.width}"
        captions.append(label)
    if images:
        save_sheet(contact_sheet(images, captions), path)


def spread_over_classes(labels: np.ndarray, number: int) -> list[int]:
    """Returns at most `number` indices: an image of each class, then a second of each, and so on; in class order."""
    order = np.argsort(labels, kind="stable")
    turn = np.arange(len(order)) - np.searchsorted(labels[order], labels[order])
    chosen = order[np.argsort(turn, kind="stable")[:number]]
    return chosen[np.argsort(labels[chosen], kind="stable")].tolist()

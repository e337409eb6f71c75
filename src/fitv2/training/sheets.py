"""What a training shows: its classes and a sheet of its images before it starts, and sheets of samples while it runs.

Sample sheets are by the averaged weights at a step, always of the same requests.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..build import sampling_advice
from ..data.dataset import Dataset
from ..data.formats import UnreadableImage
from ..data.labelling import class_lines, count_classes
from ..distributed.parallel import ParallelModel
from ..distributed.ranks import only_on_rank0
from ..errors import UserError
from ..images.autoencoder import load_autoencoder
from ..images.make_images import make_images
from ..images.sheets import contact_sheet, save_sheet, to_image
from ..messages import counted
from ..model.config import NetworkConfig
from ..sampling.generate import generate
from ..sampling.spec import SampleSpec, Sampling
from ..settings.recipe import Recipe, TrainingSettings
from ..text import PromptEncoder
from .holdout import FEWEST, held_out_of, measures

logger = logging.getLogger(__name__)
# Images on a sheet of inputs; fewer latents, because decoding them takes time.
IMAGES, LATENTS = 64, 16
# Of a sample sheet: its rows, one a class, and their images; or the images of a model of text.
CLASSES = 10
COLUMNS = 8
PROMPTS = 32


def data_lines(dataset: Dataset, training: TrainingSettings) -> Iterator[str]:
    """Yields lines for people: the number of images, and the classes with their numbers of images."""
    held_out, wanted = held_out_of(dataset, training), measures(training)
    labels = np.delete(dataset.labels, held_out)
    others = f", and {'measuring' if wanted else 'not on'} {len(held_out)} others that are held out"
    yield f"training on {counted(len(labels), 'image')}{others if len(held_out) else ''}"
    if dataset.unread_captions:
        yield "  their captions are not used; to train a model that takes prompts, add --set model.context=joint"
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


def sheet_sampling(recipe: Recipe, config: NetworkConfig) -> Sampling:
    """Returns how the sheets of a training are sampled."""
    advice, log = sampling_advice(recipe.training), recipe.log
    own = {"steps": log.sample_steps, "guidance": log.sample_guidance}
    return Sampling.of(config, {}, **own | advice)


def sheet_requests(facts: Mapping[str, Any], null_label: int) -> list[SampleSpec]:
    """Returns the images of a sheet: a row for each class, 10 at most, or for a model of text 32 captions of training.

    facts: as of `run_folder.facts`.
    """
    if examples := facts["examples"]:
        chosen = examples[:: -(-len(examples) // PROMPTS)]
        return [SampleSpec(null_label, size, seed, prompt) for seed, (prompt, size) in enumerate(chosen)]
    return [
        SampleSpec(label, shape[:2], seed=COLUMNS * label + column)
        for label, of_class in enumerate(facts["shapes"][:CLASSES])
        for column, shape in enumerate((list(of_class) * COLUMNS)[:COLUMNS])
    ]


# Without gradients, `generate` stays out of inference mode: FSDP2 keeps the tensors that it first gathers into, and
# those of inference mode could not train.
@torch.no_grad()
def write_sheet(
    path: Path,
    model: ParallelModel,
    dataset: Dataset,
    specs: Sequence[SampleSpec],
    sampling: Sampling,
    text: PromptEncoder | None = None,
) -> None:
    """Writes the images on rank 0; sharded weights need every process.

    Args:
        path: Of the sheet.
        model: The network.
        dataset: The data of the training.
        specs: The images.
        sampling: How the images are sampled.
        text: The text encoder, for a model of text.

    Raises UserError or OSError if there is no autoencoder or no room, and NotFinite as `make_images` does.
    """
    if not model.ranks.is_main_process and not model.sharded:
        return
    load = partial(load_autoencoder, dataset.autoencoder, str(model.ranks.device))
    codec = only_on_rank0(load) if model.sharded else load()
    if codec is None:  # This process only has a part of the weights.
        generate(model.module, specs, sampling, None, text)
        return
    images = make_images(model.module, codec, specs, sampling, None, text)
    if images:
        classes, names = dataset.num_classes, [*class_names(dataset), "image"]
        called = [spec.prompt or names[spec.label] for spec in specs]
        captions = [f"{name} {image.height}x{image.width}" for name, image in zip(called, images, strict=True)]
        title = f"{CLASSES} of {classes} classes" if classes > CLASSES and not specs[0].prompt else None
        save_sheet(contact_sheet(images, captions, title), path)

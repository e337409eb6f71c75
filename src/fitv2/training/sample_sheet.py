"""Sample sheets: images by the averaged weights at a step of training, always of the same requests."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from ..autoencoder import load_autoencoder, make_images
from ..build import sampling_advice
from ..data.dataset import Dataset
from ..distributed.parallel import ParallelModel
from ..distributed.ranks import only_on_rank0
from ..errors import UserError
from ..model.config import NetworkConfig
from ..sampling.generate import generate
from ..sampling.spec import SampleSpec, Sampling
from ..settings import Recipe
from ..sheets import contact_sheet, save_sheet

logger = logging.getLogger(__name__)
CLASSES = 10
COLUMNS = 8


def sheet_sampling(recipe: Recipe, config: NetworkConfig) -> Sampling:
    """Returns how the sheets of a training are sampled."""
    advice, log = sampling_advice(recipe.training), recipe.log
    own = {"steps": log.sample_steps, "guidance": log.sample_guidance}
    return Sampling.of(config, {}, **own | advice)


# Without gradients, `generate` stays out of inference mode: FSDP2 keeps the tensors that it first gathers into, and
# those of inference mode could not train.
@torch.no_grad()
def write_sheet(
    path: Path,
    model: ParallelModel,
    dataset: Dataset,
    shapes: Sequence[Sequence[tuple[int, int, int]]],
    sampling: Sampling,
) -> None:
    """Writes a row of images for each class (10 at most) on rank 0; sharded weights need every process.

    Training needs no autoencoder, and may run where there is none: one log line says then that there is no sheet.

    Args:
        path: Of the sheet.
        model: The network.
        dataset: The data, whose classes are sampled.
        shapes: For each class the most frequent (height, width, count) in latent pixels.
        sampling: How the images are sampled.
    """
    if not model.ranks.is_main_process and not model.sharded:
        return
    specs = [
        SampleSpec(label, shape[:2], seed=COLUMNS * label + column)
        for label, of_class in enumerate(shapes[:CLASSES])
        for column, shape in enumerate((list(of_class) * COLUMNS)[:COLUMNS])
    ]
    load = partial(load_autoencoder, dataset.autoencoder, str(model.ranks.device))
    try:
        codec = only_on_rank0(load) if model.sharded else load()
        if codec is None:  # This process only has a part of the weights.
            generate(model.module, specs, sampling)
            return
        images = make_images(model.module, codec, specs, sampling)
    except UserError as error:  # Training continues: its checkpoints do not depend on sheets.
        logger.warning("no sample sheet %s: %s", path.name, error)
        return
    if images:
        names = dataset.class_names or [f"class {i}" if len(shapes) > 1 else "image" for i in range(len(shapes))]
        captions = [f"{names[s.label]} {image.height}x{image.width}" for s, image in zip(specs, images, strict=True)]
        title = f"{CLASSES} of {len(shapes)} classes" if len(shapes) > CLASSES else None
        save_sheet(contact_sheet(images, captions, title), path)

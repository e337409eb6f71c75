"""Sample sheets: images by the averaged weights at a step of training, always of the same requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..build import sampling_advice
from ..data.dataset import Dataset
from ..distributed.parallel import ParallelModel
from ..distributed.ranks import only_on_rank0
from ..images.autoencoder import load_autoencoder
from ..images.make_images import make_images
from ..images.sheets import contact_sheet, save_sheet
from ..model.config import NetworkConfig
from ..sampling.generate import generate
from ..sampling.spec import SampleSpec, Sampling
from ..settings.recipe import Recipe
from ..text import PromptEncoder

CLASSES = 10
COLUMNS = 8
PROMPTS = 32


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
        classes = dataset.num_classes
        names = [*(dataset.class_names or map("class {}".format, range(classes))), "image"]
        called = [spec.prompt or names[spec.label] for spec in specs]
        captions = [f"{name} {image.height}x{image.width}" for name, image in zip(called, images, strict=True)]
        title = f"{CLASSES} of {classes} classes" if classes > CLASSES and not specs[0].prompt else None
        save_sheet(contact_sheet(images, captions, title), path)

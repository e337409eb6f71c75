"""Sample sheets: images by the averaged weights at a step of training, always of the same requests."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from ..autoencoder import KLAutoencoder, Pixels, decode_all, load_autoencoder
from ..data.dataset import Dataset
from ..distributed.parallel import ParallelModel
from ..distributed.ranks import on_rank0
from ..errors import UserError
from ..model.network import Network
from ..sampling.generate import generate
from ..sampling.spec import SampleSpec, Sampling
from ..sheets import contact_sheet, save_sheet, to_image

logger = logging.getLogger(__name__)
CLASSES = 10
COLUMNS = 8


# Without gradients, `generate` stays out of inference mode: FSDP2 keeps the tensors that it first gathers into, and
# those of inference mode could not train.
@torch.no_grad()
def draw_sheet(
    model: Network,
    class_names: Sequence[str],
    shapes: Sequence[Sequence[tuple[int, int, int]]],
    sampling: Sampling,
    codec: Pixels | KLAutoencoder | None,
) -> Image.Image | None:
    """Draws a row of images for each class (10 at most) at its most frequent sizes.

    Args:
        model: The network.
        class_names: The names of the classes, or none.
        shapes: For each class the most frequent (height, width, count) in latent pixels.
        sampling: How the images are sampled.
        codec: What decodes the latents; None in a process that only takes part in the computation.

    Returns:
        The sheet; None without a codec.
    """
    specs = [
        SampleSpec(label, shape[:2], seed=COLUMNS * label + column)
        for label, of_class in enumerate(shapes[:CLASSES])
        for column, shape in enumerate((list(of_class) * COLUMNS)[:COLUMNS])
    ]
    latents = generate(model, specs, sampling)
    if codec is None:
        return None
    names = class_names or [f"class {label}" if len(shapes) > 1 else "image" for label in range(len(shapes))]
    images = [to_image(image) for image in decode_all(codec, latents)]
    captions = [f"{names[spec.label]} {image.height}x{image.width}" for spec, image in zip(specs, images, strict=True)]
    left_out = len(shapes) > CLASSES
    return contact_sheet(images, captions, f"{CLASSES} of {len(shapes)} classes" if left_out else None)


def write_sheet(
    path: Path,
    model: ParallelModel,
    dataset: Dataset,
    shapes: Sequence[Sequence[tuple[int, int, int]]],
    sampling: Sampling,
) -> None:
    """Writes the sample sheet of a model on rank 0; with sharded weights, every process has to compute it together.

    Training needs no autoencoder, and may run where there is none: one log line says then that there is no sheet.
    """
    main, codecs = model.ranks.is_main_process, []
    if not main and not model.sharded:
        return

    def load() -> None:
        codecs.append(load_autoencoder(dataset.autoencoder, str(model.ranks.device)))

    try:
        on_rank0(load) if model.sharded else load()
        page = draw_sheet(model.module, dataset.class_names, shapes, sampling, codecs[0] if codecs else None)
    except UserError as error:  # Training goes on: what it saves does not depend on sheets.
        logger.warning("no sample sheet %s: %s", path.name, error)
    else:
        if main and page is not None:
            save_sheet(page, path)

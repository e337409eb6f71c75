"""Sample sheets: what the averaged model makes at a step of training, always from the same wishes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ..generate import Sampling, Wish, generate_with
from ..model.transformer import FiT
from ..sheets import contact_sheet, to_image
from ..tokens import TokenBatch

CLASSES = 10
COLUMNS = 8


# Not `generate` and its inference mode: FSDP2 keeps the tensors that it first gathers into, and those could not train.
@torch.no_grad()
def draw_sheet(
    model: FiT, class_names: Sequence[str], shapes: Sequence[Sequence[tuple[int, int, int]]], sampling: Sampling
) -> Image.Image:
    """A row per class (10 at most) at its most frequent (height, width, count) shapes."""

    def network(batch: TokenBatch, t: Tensor, y: Tensor) -> Tensor:
        return model(batch, t, y).float()

    wishes = [
        Wish(label, shape[:2], seed=COLUMNS * label + column)
        for label, of_class in enumerate(shapes[:CLASSES])
        for column, shape in enumerate((list(of_class) * COLUMNS)[:COLUMNS])
    ]
    latents = generate_with(network, model.config, wishes, sampling, next(model.parameters()).device)
    names = class_names or ["picture"]
    captions = [f"{names[wish.label]} {wish.size[0]}x{wish.size[1]}" for wish in wishes]
    return contact_sheet([to_image(latent) for latent in latents], captions)

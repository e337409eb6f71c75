"""Sample sheets: what the averaged model makes at a step of training, always from the same wishes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..atomic import write_file
from ..generate import Sampling, Wish, generate
from ..model.transformer import FiT
from ..sheets import contact_sheet, to_image

CLASSES = 10
COLUMNS = 8


def write_sheet(
    path: Path,
    model: FiT,
    class_names: Sequence[str],
    shapes: Sequence[Sequence[tuple[int, int, int]]],
    sampling: Sampling,
) -> None:
    """A row per class (10 at most) at its most frequent (height, width, count) shapes; atomic, as PNG."""
    wishes = [
        Wish(label, shape[:2], seed=COLUMNS * label + column)
        for label, of_class in enumerate(shapes[:CLASSES])
        for column, shape in enumerate((list(of_class) * COLUMNS)[:COLUMNS])
    ]
    latents = generate(model, wishes, sampling)
    names = class_names or ["picture"]
    captions = [f"{names[wish.label]} {wish.size[0]}x{wish.size[1]}" for wish in wishes]
    page = contact_sheet([to_image(latent) for latent in latents], captions)
    write_file(path, lambda draft: page.save(draft, "PNG"))

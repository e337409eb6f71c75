"""Sample sheets: what the averaged model makes at a step of training, always from the same wishes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..generate import Sampling, Wish, generate
from ..model.transformer import FiT
from ..sheets import contact_sheet, to_image

CLASSES = 16
COLUMNS = 8
TOKENS_PER_PASS = 8192


def write_sheet(
    path: Path,
    model: FiT,
    class_names: Sequence[str],
    shapes: Sequence[Sequence[tuple[int, int, int]]],
    sampling: Sampling,
) -> None:
    """A row per class (16 at most) at its most frequent (height, width, count) shapes; atomic, as PNG."""
    wishes = [
        Wish(label, shape[:2], seed=COLUMNS * label + column)
        for label, of_class in enumerate(shapes[:CLASSES])
        for column, shape in enumerate((list(of_class) * COLUMNS)[:COLUMNS])
    ]
    longest = max(wish.size[0] * wish.size[1] for wish in wishes) // model.config.patch_size**2
    latents = generate(model, wishes, sampling, max(TOKENS_PER_PASS, longest))
    names = class_names or ["picture"]
    captions = [f"{names[wish.label]} {wish.size[0]}x{wish.size[1]}" for wish in wishes]
    path.parent.mkdir(exist_ok=True)
    draft = path.with_name(f".{path.name}.partial")
    contact_sheet([to_image(latent) for latent in latents], captions).save(draft, "PNG")
    draft.replace(path)

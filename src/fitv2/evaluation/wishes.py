"""Which pictures a model makes for an evaluation: classes in turn, sizes, and a seed for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..checkpoints.model_folder import Pretrained
from ..errors import UserError
from ..generate import Wish, check_divisible, scaled_size
from ..randomness import Purpose, numpy_generator

# The seed of picture i is seed * SEEDS + i, so different seeds share no picture up to this many.
SEEDS = 1_000_000
SEED_SCHEME = f"seed * {SEEDS} + index"
LABEL_SCHEME = "classes in turn"


@dataclass(frozen=True)
class SizeWish:
    """One (height, width) in pixels for all pictures, or None: as training had them of each class, both sides times
    `scale`, and exchanged if `turned`.
    """

    pixels: tuple[int, int] | None = None
    scale: float = 1.0
    turned: bool = False

    def __str__(self) -> str:
        if self.pixels is not None:
            return f"{self.pixels[0]}x{self.pixels[1]}"
        return "own" + (f":{self.scale:g}" if self.scale != 1 else "") + ("-turned" if self.turned else "")


def balanced_wishes(pretrained: Pretrained, number: int, size: SizeWish, seed: int, factor: int) -> list[Wish]:
    """Picture i is of class i modulo their number, or of none, and is the same whatever the number of pictures.

    factor: pixels per latent pixel. Raises ValueError for a size that does not divide, or more than a million pictures.
    """
    if not 1 <= number <= SEEDS:
        raise UserError(f"an evaluation is of 1 to {SEEDS} pictures, not {number}")
    classes = pretrained.model.config.num_classes
    patch = pretrained.model.config.patch_size
    if size.pixels is None:
        # Of each class no more than it has images: the first of the same draw, whatever the number.
        drawn = [
            drawn_sizes(shapes, len(range(label, number, max(classes, 1))), (seed, label))
            for label, shapes in zip(range(number), own_shapes(pretrained, max(classes, 1)), strict=False)
        ]
    else:
        check_divisible(size.pixels, factor * patch)
    wishes = []
    for i in range(number):
        label = i % classes if classes else pretrained.model.null_label
        if size.pixels is None:
            height, width = scaled_size(drawn[i % max(classes, 1)][i // max(classes, 1)], size.scale, patch)
            latent = (width, height) if size.turned else (height, width)
        else:
            latent = (size.pixels[0] // factor, size.pixels[1] // factor)
        wishes.append(Wish(label, latent, seed * SEEDS + i))
    return wishes


def own_shapes(pretrained: Pretrained, classes: int) -> list[list[tuple[int, int, int]]]:
    """Of each class the (height, width, count) that training had of it; of all classes where it had none."""
    of_all = [shape for of_class in pretrained.shapes for shape in of_class]
    if not of_all:
        raise UserError("this model does not say which sizes it was trained on; give --size")
    known = dict(enumerate(pretrained.shapes))
    return [known.get(label) or of_all for label in range(classes)]


def drawn_sizes(shapes: Sequence[tuple[int, int, int]], number: int, seed: tuple[int, int]) -> list[tuple[int, int]]:
    """`number` pairs (height, width), each as often as training had it."""
    counts = np.array([count for *_, count in shapes], dtype=float)
    chosen = numpy_generator(Purpose.REQUESTS, *seed).choice(len(shapes), number, p=counts / counts.sum())
    return [shapes[i][:2] for i in chosen.tolist()]

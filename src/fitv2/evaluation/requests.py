"""Which images a model makes for an evaluation: a class, a size and a seed for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..checkpoints.model_folder import Pretrained
from ..errors import UserError
from ..randomness import Purpose, numpy_generator
from ..sampling.spec import SampleSpec, check_divisible, scaled_size

# How seeds and labels follow from the seed of an evaluation and the index of an image.
SEED_SCHEME, LABEL_SCHEME = "seed + index", "classes in turn"


@dataclass(frozen=True)
class SizeSpec:
    """(height, width) in pixels of every image; None for sizes drawn from those that training had of each class.

    scale, turned: A factor on both sides of these, and whether height and width are exchanged.
    """

    pixels: tuple[int, int] | None = None
    scale: float = 1.0
    turned: bool = False

    def __str__(self) -> str:
        if self.pixels is not None:
            return f"{self.pixels[0]}x{self.pixels[1]}"
        return "own" + (f":{self.scale:g}" if self.scale != 1 else "") + ("-turned" if self.turned else "")


def balanced_specs(pretrained: Pretrained, number: int, size: SizeSpec, seed: int, factor: int) -> list[SampleSpec]:
    """Returns `number` requests; the first ones are the same whatever the number.

    Image i is of class i modulo the number of classes and has the seed `seed` + i, so `fitv2 sample` with its class,
    size and seed makes the same image. The seed also decides which sizes are drawn; `factor` is the number of pixels
    per latent pixel. Raises UserError if a size is not divisible by the patch, or if the model does not know the sizes
    of its training.
    """
    classes, patch = pretrained.model.config.num_classes, pretrained.model.config.patch_size
    labels = [i % classes if classes else pretrained.model.config.null_label for i in range(number)]
    if size.pixels is not None:
        check_divisible(size.pixels, factor * patch)
        latent = size.pixels[0] // factor, size.pixels[1] // factor
        return [SampleSpec(label, latent, seed + i) for i, label in enumerate(labels)]
    every = max(classes, 1)
    # Of each class only as many as it has images.
    drawn = [
        _drawn_sizes(shapes, len(range(label, number, every)), (seed, label))
        for label, shapes in zip(range(number), _shapes_of_classes(pretrained, every), strict=False)
    ]
    specs = []
    for i, label in enumerate(labels):
        height, width = scaled_size(drawn[i % every][i // every], size.scale, patch)
        specs.append(SampleSpec(label, (width, height) if size.turned else (height, width), seed + i))
    return specs


def _shapes_of_classes(pretrained: Pretrained, classes: int) -> list[list[tuple[int, int, int]]]:
    """For each class the (height, width, count) that training had; those of all classes if it had none."""
    of_all = [shape for of_class in pretrained.shapes for shape in of_class]
    if not of_all:
        raise UserError("this model does not say which sizes it was trained on; give --size")
    known = dict(enumerate(pretrained.shapes))
    return [known.get(label) or of_all for label in range(classes)]


def _drawn_sizes(shapes: Sequence[tuple[int, int, int]], number: int, seed: tuple[int, int]) -> list[tuple[int, int]]:
    """`number` pairs (height, width), each as likely as it was frequent in training."""
    counts = np.array([count for *_, count in shapes], dtype=float)
    chosen = numpy_generator(Purpose.REQUESTS, *seed).choice(len(shapes), number, p=counts / counts.sum())
    return [shapes[i][:2] for i in chosen.tolist()]

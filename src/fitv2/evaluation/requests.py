"""Which images a model makes for an evaluation: a class, a size and a seed for each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..checkpoints.model_folder import Pretrained
from ..errors import UserError
from ..randomness import Purpose, numpy_generator
from ..sampling.spec import SampleSpec, check_divisible, scaled_size


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
        sizes = [(size.pixels[0] // factor, size.pixels[1] // factor)] * number
    else:
        sizes = [scaled_size(drawn, size.scale, patch) for drawn in _drawn_sizes(pretrained, number, seed)]
    if size.turned:
        sizes = [(width, height) for height, width in sizes]
    return [SampleSpec(label, own, seed + i) for i, (label, own) in enumerate(zip(labels, sizes, strict=True))]


def _drawn_sizes(pretrained: Pretrained, number: int, seed: int) -> list[tuple[int, int]]:
    """Returns `number` sizes (height, width), each as likely as it was frequent in training of the image's class.

    The shapes (height, width, count) of all classes stand for those of a class without any.
    """
    of_all = [shape for of_class in pretrained.shapes for shape in of_class]
    if not of_all:
        raise UserError("this model does not say which sizes it was trained on; give --size")
    classes = max(pretrained.model.config.num_classes, 1)
    sizes: list[tuple[int, int]] = [(0, 0)] * number
    for label in range(min(classes, number)):
        shapes = (pretrained.shapes[label : label + 1] or [[]])[0] or of_all
        counts = np.array([count for *_, count in shapes], dtype=float)
        generator, places = numpy_generator(Purpose.REQUESTS, seed, label), range(label, number, classes)
        chosen = generator.choice(len(shapes), len(places), p=counts / counts.sum())
        sizes[label::classes] = [shapes[i][:2] for i in chosen.tolist()]
    return sizes

"""Arguments of the pipeline that have several forms, brought to one."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..classes import Classes
from ..errors import UserError
from ..messages import counted
from ..model.config import RopeScheme
from ..randomness import PLAIN_SEEDS
from ..sampling.sizes import latent_size
from ..sampling.spec import SampleSpec


def plain(values: Any) -> Any:
    """Returns tensors and arrays as lists of numbers."""
    return values.tolist() if hasattr(values, "tolist") else values


def sizes_of(sizes: Any, own: int) -> list[tuple[int, int]]:
    """Returns (height, width) in pixels of one size or of several; a side of None is `own`. Raises UserError."""

    def is_size(size: Any) -> bool:
        return isinstance(size, Sequence) and len(size) == 2 and all(isinstance(side, Integral | None) for side in size)

    sizes = plain(sizes)
    sizes = sizes if isinstance(sizes, Sequence) and not is_size(sizes) else [sizes]
    if wrong := [size for size in sizes if not is_size(size)]:
        raise UserError(f"{wrong[0]!r} is not a size: give (height, width) in whole pixels")
    return [(own if height is None else height, own if width is None else width) for height, width in sizes]


def label_numbers(classes: Classes, class_labels: Any) -> list[int]:
    """Returns names and numbers as numbers; None is "no class", the number of classes. Raises UserError."""
    if class_labels is None:
        return [classes.count]
    numbers = [classes.number(label) for label in flat(class_labels)]
    if not numbers:
        raise UserError("there is no class label: give one per image, or None for an image of no class")
    return numbers


def flat(labels: Any) -> list[int | str]:
    """Returns labels of any nesting, or a tensor of them, as one list."""
    labels = plain(labels)
    return [label for part in labels for label in flat(part)] if isinstance(labels, list | tuple) else [labels]


def texts_of(prompt: str | Sequence[str] | None) -> list[str]:
    """Returns one prompt or several as a list; None is the empty one. Raises UserError for anything but text."""
    prompts = [""] if prompt is None else [prompt] if isinstance(prompt, str) else plain(prompt)
    if not isinstance(prompts, Sequence) or not prompts or not all(isinstance(text, str) for text in prompts):
        raise UserError(f"{prompt!r} is no prompt: give a text, or a list of texts with at least one")
    return list(prompts)


def specs_of(
    labels: list[int],
    prompts: list[str],
    negative_prompts: list[str],
    sizes: list[tuple[int, int]],
    seeds: Any,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    factor: int,
    patch_size: int,
) -> list[SampleSpec]:
    """Returns one request per image, sizes in latent pixels; of what is given most of, there is one per image.

    Raises UserError where there is neither one for each image nor one for all.
    """
    given = {"class label": labels, "prompt": prompts, "negative prompt": negative_prompts, "size": sizes}
    each = generator if seeds is None else plain(seeds)
    images = max(map(len, [*given.values(), each if isinstance(each, Sequence) else ()]))
    subject = next((what for what, values in given.items() if len(values) == images), "seed")
    for what, values in given.items():
        if len(values) not in (1, images):
            numbers = f"{counted(len(values), what)} for {counted(images, subject)}"
            raise UserError(f"{numbers}: give one each, or one for all")
    seeds = draw_seeds(images, generator) if seeds is None else each
    if not isinstance(seeds, Sequence) or len(seeds) != images:
        raise UserError(f"seeds {seeds!r} for {counted(images, 'image')}: give one seed or generator per image")
    given["size"] = [latent_size(size, factor, patch_size) for size in sizes]
    columns = (values * images if len(values) == 1 else values for values in given.values())
    return [
        SampleSpec(label, size, seed, prompt, negative)
        for label, prompt, negative, size, seed in zip(*columns, seeds, strict=True)
    ]


def rope_scheme(
    own: RopeScheme, extrapolation: str | RopeScheme | None, attention_scale: str | None
) -> RopeScheme | None:
    """Returns the requested RoPE scheme; None means the model's `own`. Raises UserError."""
    if not isinstance(extrapolation, str | RopeScheme | None):
        raise UserError(f"extrapolation is a name or a RopeScheme, not {extrapolation!r}")
    if isinstance(extrapolation, str):
        return own.named(extrapolation, attention_scale)
    if attention_scale is not None:
        raise UserError('attention_scale belongs to an extrapolation by name, such as "vision-ntk"')
    return extrapolation


def draw_seeds(count: int, generator: torch.Generator | Sequence[torch.Generator] | None) -> list[int]:
    """Returns a different seed per image below 2**32, from its own generator or one for all (None: torch's global)."""
    if isinstance(generator, Sequence):
        return [draw_seeds(1, own)[0] for own in generator]
    if not isinstance(generator, torch.Generator | None):
        raise UserError(f"generator is a torch.Generator or one per image, not {generator!r}")
    device = generator.device if generator is not None else "cpu"
    seeds: dict[int, None] = {}
    while len(seeds) < count:
        drawn = torch.randint(PLAIN_SEEDS, (count - len(seeds),), generator=generator, device=device)
        seeds |= dict.fromkeys(drawn.tolist())
    return list(seeds)


def stacked(arrays: list) -> list | Tensor | np.ndarray:
    """Returns arrays of one shape as one, and others as they are."""
    if len({tuple(array.shape) for array in arrays}) > 1:
        return arrays
    return torch.stack(arrays) if isinstance(arrays[0], Tensor) else np.stack(arrays)

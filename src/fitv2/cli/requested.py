"""Which images `fitv2 sample` makes: classes, sizes and seeds, their file names, and whether they fit into memory."""

from __future__ import annotations

import re
import sys
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..messages import counted
from .sampling import parse_size

if TYPE_CHECKING:
    from ..checkpoints.model_folder import Pretrained
    from ..sampling.spec import SampleSpec, Sampling

# The factor between the sides of an image of training and those of a larger one that is shown.
LARGER = 1.43
DEFAULT_CLASSES = 16
# Of a class in the name of a file.
MOST_BYTES = 150
# Times the most tokens, or the widest aspect, of training: a size beyond it is warned of.
FAR = 2.0


def describe(pretrained: Pretrained, spec: SampleSpec, factor: int) -> dict[str, Any]:
    """Returns class, size in pixels and seed of a requested image, and whether training had the size for the class."""
    return {
        "class": class_name(pretrained, spec.label),
        "label": spec.label,
        "size": [side * factor for side in spec.size],
        "seed": spec.seed,
        "seen": spec.size in own_sizes(pretrained, spec.label),
    }


def shown_classes(pretrained: Pretrained, labels: list[str] | None) -> str | None:
    """Says how many of the classes are shown if nobody has chosen them; None if all are."""
    classes = pretrained.model.config.num_classes
    return None if labels or classes <= DEFAULT_CLASSES else f"{DEFAULT_CLASSES} of {classes:,} classes"


def warn_of_sizes(pretrained: Pretrained, specs: list[SampleSpec], factor: int) -> None:
    """Warns on stderr of each size that is far beyond those of training, in tokens or in aspect."""
    trained = [(h, w) for of_class in pretrained.shapes for h, w, _ in of_class]
    if not trained or pretrained.model.config.fixed_grid is not None:
        return
    most, widest = max(h * w for h, w in trained), max(aspect(size) for size in trained)
    for height, width in dict.fromkeys(spec.size for spec in specs):
        name, more = f"{height * factor}x{width * factor}", height * width / most
        if more > FAR:
            print(
                f"Warning: {name} is {more:.1f} times the area of the largest image in training; expect broken "
                "content; --extrapolation vision-ntk may help.",
                file=sys.stderr,
            )
        elif (ratio := aspect((height, width))) > FAR * widest:
            print(
                f"Warning: {name} has an aspect of 1:{ratio:.1f}, and training had at most 1:{widest:.1f}; expect "
                "broken content.",
                file=sys.stderr,
            )


def aspect(size: tuple[int, int]) -> float:
    return max(size) / min(size)


def list_specs(
    pretrained: Pretrained,
    labels: list[str] | None,
    sizes: list[str] | None,
    per_class: int | None,
    num_images: int | None,
    seed: int,
    factor: int = 1,
) -> list[SampleSpec]:
    """Returns the images to make, with seeds that count up from `seed`.

    They are `per_class` images of each class in each size, or `num_images` in all with the classes in turn. factor:
    pixels per latent pixel. Raises UserError for an unknown class, an impossible size, or both numbers.
    """
    from ..sampling.spec import SampleSpec, check_spec

    if per_class is not None and num_images is not None:
        raise UserError("--num-images is the number in all, --per-class that of each class and size; give one of them")
    patch = pretrained.model.config.patch_size
    asked = [latent_size(text, factor, patch) for text in sizes or ()]
    rows = [[(label, size) for size in asked or showcase(pretrained, label)] for label in chosen(pretrained, labels)]
    if num_images is None:
        pairs = [pair for row in rows for pair in row for _ in range(per_class or 1)]
    else:
        in_turn = [row[column] for column in range(max(map(len, rows))) for row in rows if column < len(row)]
        pairs = list(islice(cycle(in_turn), num_images))
    specs = [SampleSpec(label, size, seed + i) for i, (label, size) in enumerate(pairs)]
    for spec in specs:
        check_spec(spec, pretrained.model.config)
    return specs


def chosen(pretrained: Pretrained, labels: list[str] | None) -> list[int]:
    """Returns the numbers of the classes; without any, the first 16, or "no class" for a model without classes."""
    if labels:
        # A name may itself have commas, as those of ImageNet do.
        parts = [part for text in labels for part in ([text] if text in pretrained.class_names else text.split(","))]
        return [pretrained.classes.number(part.strip()) for part in parts]
    return list(range(min(pretrained.model.config.num_classes, DEFAULT_CLASSES))) or [
        pretrained.model.config.null_label
    ]


def own_sizes(pretrained: Pretrained, label: int) -> list[tuple[int, int]]:
    """Returns the sizes that training had of a class, most frequent first; of all classes if it had none of it."""
    own = [(h, w) for of_class in pretrained.shapes[label : label + 1] for h, w, _ in of_class]
    return own or [(h, w) for of_class in pretrained.shapes for h, w, _ in of_class]


def showcase(pretrained: Pretrained, label: int) -> list[tuple[int, int]]:
    """Returns the two most frequent sizes of a class, and a larger one and another aspect that training never had.

    A model of a fixed grid has one size only.
    """
    from ..sampling.spec import scaled_size

    own = own_sizes(pretrained, label)
    if pretrained.model.config.fixed_grid is not None:
        return own[:1]
    height, width = own[0]
    larger = scaled_size((height, width), LARGER, pretrained.model.config.patch_size)
    turned = [(w, h) for h, w in own] + [(height, 2 * width), (2 * height, width)]
    foreign = [size for size in turned if size not in own]
    return [*own[:2], larger, *foreign[:1]]


def latent_size(text: str, factor: int, patch: int) -> tuple[int, int]:
    """Returns a size in pixels as one in latent pixels. Raises UserError, naming the nearest, if that is impossible."""
    from ..sampling.spec import check_divisible

    size = parse_size(text)
    check_divisible(size, factor * patch)
    return size[0] // factor, size[1] // factor


def file_name(name: str) -> str:
    """Returns a class name without characters that file systems refuse, cut to fit into the 255 bytes of a name."""
    return re.sub(r"[^\w-]+", "-", name).encode()[:MOST_BYTES].decode(errors="ignore")


def image_name(pretrained: Pretrained, spec: SampleSpec, factor: int) -> str:
    height, width = (side * factor for side in spec.size)
    return f"{file_name(class_name(pretrained, spec.label) or 'image')}_{height}x{width}_seed{spec.seed}.png"


def class_name(pretrained: Pretrained, label: int) -> str | None:
    return pretrained.class_names[label] if label < len(pretrained.class_names) else None


def check_memory(pretrained: Pretrained, specs: list[SampleSpec], sampling: Sampling) -> None:
    """Raises UserError if the largest batch would not fit into the memory that is free now."""
    import torch

    from ..profiling.formula import forward_bytes
    from ..sampling.generate import batches, max_tokens
    from .memory import free_bytes

    config, weight = pretrained.model.config, next(pretrained.model.parameters())
    device, precision = weight.device, "fp32" if weight.dtype == torch.float32 else "bf16"
    tokens = [spec.tokens(config.patch_size) for spec in specs]
    largest = max(batches(tokens, max_tokens(sampling, device)), key=lambda batch: sum(tokens[i] for i in batch))
    # With and without their classes, and beyond the weights, which are there already.
    needed = forward_bytes(config, 2 * sum(tokens[i] for i in largest), precision)
    free = free_bytes(device)
    if needed > free:
        height, width = max((specs[i].size for i in largest), key=lambda size: size[0] * size[1])
        raise UserError(
            f"{counted(len(largest), 'image')} of up to {height}x{width} would need about {needed / 2**30:,.0f} GiB of "
            f"memory, and {free / 2**30:.0f} GiB are free; ask for a smaller --size, or add --ignore-memory"
        )

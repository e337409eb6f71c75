"""Which images `fitv2 sample` makes, what they begin with, their file names, and whether they fit into memory."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from itertools import cycle, islice, zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple
from unicodedata import category, normalize

from ..errors import UserError
from ..messages import counted
from .options import parse_size

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

    from ..checkpoints.model_folder import Pretrained
    from ..images.autoencoder import LatentCodec, Pixels
    from ..images.edits import Edit
    from ..sampling.spec import SampleSpec, Sampling
    from ..text import TextEncoder

# The factor between the sides of an image of training and those of a larger one that is shown.
LARGER = 1.43
DEFAULT_CLASSES = DEFAULT_PROMPTS = 16
# In one call.
MOST_IMAGES = 10**6
# The most bytes of a class name in the name of a file.
MOST_BYTES = 150
# Of a prompt, in the name of a file and on a sheet.
MOST_LETTERS = 60
# Sizes beyond this many times the most tokens, or the widest aspect, of training cause a warning.
FAR = 2.0


def describe(pretrained: Pretrained, spec: SampleSpec, factor: int) -> dict[str, Any]:
    """Returns file, class, size in pixels and seed of an image, and whether training had the size for the class."""
    names = pretrained.class_names
    name = names[spec.label] if spec.label < len(names) else None
    height, width = (side * factor for side in spec.size)
    other = "image" if name is None else f"class{spec.label}"  # Where a name has no letter or digit.
    row = {
        "file": f"{file_name(spec.prompt[:MOST_LETTERS] or name or '', other)}_{height}x{width}_seed{spec.seed}.png",
        "class": name,
        "label": spec.label,
        "size": [height, width],
        "seed": spec.seed,
        # A model of text has seen too many sizes to know them all.
        "seen": pretrained.text_encoder is not None or spec.size in own_sizes(pretrained, spec.label),
    }
    return row | ({"prompt": spec.prompt} if pretrained.text_encoder else {})


def shown(prompt: str | None) -> str:
    """Returns a prompt as a sheet shows it, a long one cut."""
    return prompt or "" if len(prompt or "") <= MOST_LETTERS else f"{(prompt or '')[:MOST_LETTERS]}..."


def file_name(name: str, other: str = "unnamed") -> str:
    """Returns a class name without characters that file systems refuse, cut to fit into the 255 bytes of a name.

    Vowel signs and accents stay, also those that are characters of their own, as in folders of macOS. It never begins
    with a hyphen, like an option. other: The name if nothing is left.
    """
    kept = (c if c.isalnum() or c in "_-" or category(c)[0] == "M" else " " for c in normalize("NFC", name))
    return re.sub(" +", "-", "".join(kept)).encode()[:MOST_BYTES].decode(errors="ignore").strip("-") or other


def shown_classes(pretrained: Pretrained, labels: list[str] | None) -> str | None:
    """Says how many of the classes are shown if nobody has chosen them; None if all are."""
    classes = pretrained.model.config.num_classes
    few = labels or classes <= DEFAULT_CLASSES or pretrained.text_encoder
    return None if few else f"{DEFAULT_CLASSES} of {classes:,} classes"


def warn_of_sizes(pretrained: Pretrained, specs: list[SampleSpec], factor: int) -> None:
    """Warns on stderr of each size that is far beyond those of training, in tokens or in aspect."""
    trained = [(h, w) for of_class in pretrained.shapes for h, w, _ in of_class]
    if not trained or pretrained.model.config.fixed_grid is not None:
        return
    most, widest = max(h * w for h, w in trained), max(max(size) / min(size) for size in trained)
    for height, width in dict.fromkeys(spec.size for spec in specs):
        area, aspect = height * width / most, max(height, width) / min(height, width)
        if area > FAR:
            cure = f"try --upscale-from {pretrained.most_tokens}"
            what = f"{area:.1f} times the area of the largest image in training ({cure})"
        elif aspect > FAR * widest:
            what = f"of an aspect of 1:{aspect:.1f}, and training had at most 1:{widest:.1f}"
        else:
            continue
        print(f"Warning: {height * factor}x{width * factor} is {what}; expect broken content.", file=sys.stderr)


def list_specs(
    pretrained: Pretrained,
    labels: list[str] | None,
    sizes: list[str] | None,
    per_class: int | None,
    num_images: int | None,
    seed: int,
    factor: int = 1,
    prompts: Sequence[str] = (),
    negative_prompt: str = "",
) -> list[SampleSpec]:
    """Returns the images to make, with seeds that count up from `seed`.

    They are `per_class` images of each subject in each size, or `num_images` of each size with the subjects in turn;
    without sizes, `num_images` of the subjects' own sizes in turn. A subject is a class, a prompt, or one of both.
    factor: pixels per latent pixel. Raises UserError for an unknown class, an impossible size, or both numbers.
    """
    from ..sampling.sizes import latent_size
    from ..sampling.spec import SampleSpec, check_spec

    if per_class is not None and num_images is not None:
        raise UserError("--num-images is the number of each size, --per-class that of each class and size; give one")
    config, asked = pretrained.model.config, [parse_size(text) for text in sizes or ()]
    latent = [latent_size(size, factor, config.patch_size) for size in asked]
    subjects = chosen_subjects(pretrained, labels, prompts)
    if not subjects:
        raise UserError("this model keeps no captions of its training that could be drawn; give --prompt")
    if not latent and not any(subject.sizes for subject in subjects):
        raise UserError("this model does not say which sizes it was trained on; give --size")
    number = (per_class or 1) * len(subjects) if num_images is None else num_images
    if number * max(len(latent), 1) > MOST_IMAGES:
        raise UserError(
            f"more than {MOST_IMAGES:,} images are too many for one call: ask for some at a time, by --seed"
        )
    if num_images is None:
        rows = [(subject, size) for subject in subjects for size in latent or subject.sizes]
        pairs = [pair for pair in rows for _ in range(per_class or 1)]
    else:
        own = zip_longest(*([(subject, size) for size in subject.sizes] for subject in subjects))
        in_turn = [[(subject, size) for subject in subjects] for size in latent]
        in_turn = in_turn or [[pair for column in own for pair in column if pair is not None]]
        pairs = [pair for turn in in_turn for pair in islice(cycle(turn), num_images)]
    specs = [
        SampleSpec(subject.label, size, seed + i, subject.prompt, negative_prompt)
        for i, (subject, size) in enumerate(pairs)
    ]
    for spec in specs:
        check_spec(spec, config)
    return specs


class Subject(NamedTuple):
    """What an image shows, and the sizes in latent pixels in which it is made if nobody has chosen others."""

    label: int
    prompt: str
    sizes: list[tuple[int, int]]


def chosen_subjects(pretrained: Pretrained, labels: list[str] | None, prompts: Sequence[str]) -> list[Subject]:
    """Returns each class with each prompt; without prompts, for a model of text, captions of its training."""
    null = pretrained.model.config.null_label
    if pretrained.text_encoder is None:  # Prompts are refused where the requests are checked.
        classes = chosen(pretrained, labels)
        return [Subject(label, text, showcase(pretrained, label)) for label in classes for text in prompts or [""]]
    classes = chosen(pretrained, labels) if labels else [null]
    if not prompts and not labels:
        step = -(-len(pretrained.examples) // DEFAULT_PROMPTS) or 1
        drawn = pretrained.showcase or pretrained.examples[::step]
        return [Subject(null, caption, [size]) for caption, size in drawn]
    square = math.isqrt(max((h * w for h, w in own_sizes(pretrained, null)), default=0))
    patch = pretrained.model.config.patch_size
    side = max(square // patch, 1) * patch
    sizes = [(side, side)] if square else []
    return [Subject(label, text, sizes) for label in classes for text in prompts or [""]]


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

    A model of a fixed grid has one size only, and one that does not know its sizes none.
    """
    from ..sampling.sizes import scaled_size

    own = own_sizes(pretrained, label)
    if pretrained.model.config.fixed_grid is not None or not own:
        return own[:1]
    height, width = own[0]
    larger = scaled_size((height, width), LARGER, pretrained.model.config.patch_size)
    turned = [(w, h) for h, w in own] + [(height, 2 * width), (2 * height, width)]
    return [*own[:2], larger, *[size for size in turned if size not in own][:1]]


def read_prompts(given: Sequence[str], file: Path | None) -> list[str]:
    """Returns the prompts of the command line, then those of a file, one per line. Raises UserError if there are none.

    An empty prompt of the command line is one: an image of no text.
    """
    if file is None:
        return list(given)
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the prompts in {file} cannot be read ({error})") from None
    if not any(lines):
        raise UserError(f"{file} holds no prompts: write one per line")
    return [*given, *filter(None, lines)]


def edits_of(
    init_image: Path | None,
    mask: Path | None,
    strength: float | None,
    anchor: str,
    sizes: list[str] | None,
    pretrained: Pretrained,
    codec: Pixels | LatentCodec,
) -> tuple[dict[str, Edit], dict[str, Any]]:
    """Returns, by size, the image to begin with on a canvas of that size, by default its own, see `fitv2.images.edits`.

    And what samples.json says of it: the files by their content, because another may take their place. Both are empty
    without an image. Raises UserError for an image that cannot be read or does not fit, and for options without one.
    """
    import torch

    from ..images.edits import lay_out
    from ..system.device import lack_of_memory
    from ..system.hashes import file_digest

    if init_image is None:
        if mask is not None or strength is not None or anchor != "center":
            raise UserError("--mask, --strength and --anchor are about an image to begin with: give --init-image")
        return {}, {}
    channels = 3 if codec.channels else pretrained.model.config.in_channels
    image, white = read_image(init_image, channels), None if mask is None else read_image(mask, 1)
    unit = codec.factor * pretrained.model.config.patch_size
    wanted = [None if size is None else parse_size(size) for size in sizes or [None]]
    for height, width in filter(None, wanted):  # Before a canvas is laid out: in float32, and in copies.
        if lack := lack_of_memory(f"an image of {height}x{width}", 16 * channels * height * width, torch.device("cpu")):
            raise UserError(f"{lack}; ask for a smaller --size")
    edits = [lay_out(image, channels, unit, size, white, strength, anchor) for size in wanted]
    digests = {"init_image": file_digest(init_image), "mask": mask and file_digest(mask)}
    return {"x".join(map(str, edit.size)): edit for edit in edits}, digests | {"strength": strength, "anchor": anchor}


def read_image(path: Path, channels: int) -> Image.Image:
    """Returns the image in a file. Raises UserError if there is none."""
    from ..data.decode import decode
    from ..data.formats import UnreadableImage

    try:
        return decode(path, "L" if channels == 1 else "RGB")
    except UnreadableImage as error:
        raise UserError(f"{path}: {error}") from None


def check_memory(
    pretrained: Pretrained, specs: list[SampleSpec], sampling: Sampling, factor: int, text: TextEncoder | None
) -> None:
    """Raises UserError, with a size that fits, if the largest batch would not fit into the memory that is free now."""
    import torch

    from ..profiling.formula import forward_bytes
    from ..sampling.generate import batches, computed_tokens, max_tokens
    from ..sampling.sizes import scaled_size
    from ..system.device import free_bytes, lack_of_memory

    config, weight = pretrained.model.config, next(pretrained.model.parameters())
    tokens = [computed_tokens(spec, sampling, config.patch_size) for spec in specs]
    groups = batches(tokens, max_tokens(sampling, weight.device))
    # With and without their classes and texts, and beyond the weights, which are there already.
    context = [0] * len(specs)
    if text is not None:
        prompts = (
            text.tokenize([spec.prompt for spec in specs]),
            text.tokenize([spec.negative_prompt for spec in specs]),
        )
        context = [len(one) + len(other) for one, other in zip(*prompts, strict=True)]
    largest = max(groups, key=lambda batch: sum(2 * tokens[i] + context[i] for i in batch))
    total = sum(2 * tokens[i] + context[i] for i in largest)
    needed = forward_bytes(config, total, "fp32" if weight.dtype == torch.float32 else "bf16")
    size = max((specs[i].size for i in largest), key=lambda size: size[0] * size[1])
    what = f"{counted(len(largest), 'image')} of up to {size[0] * factor}x{size[1] * factor}"
    if lack := lack_of_memory(what, needed, weight.device):
        # The memory of a batch grows with its tokens, which are those of a single image if it is a large one.
        fits = scaled_size(size, 0.95 * math.sqrt(free_bytes(weight.device) / needed), config.patch_size)
        height, width = (side * factor for side in fits)
        raise UserError(f"{lack}; ask for --size {height}x{width} or less, or add --ignore-memory")

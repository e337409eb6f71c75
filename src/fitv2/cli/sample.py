"""`fitv2 sample`: images of chosen classes and sizes, one PNG each and a contact sheet."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from ..messages import counted
from .samples import SHEET, begin, finish, free_folder
from .sampling import (
    AttentionScale,
    Autoencoder,
    CacheInterval,
    Device,
    Extrapolation,
    GuidanceChannels,
    GuidanceInterval,
    GuidancePower,
    IgnoreMemory,
    Precision,
    Solver,
    Steps,
    TimeShift,
    build_sampling,
    load_for_sampling,
    parse_size,
)

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ..checkpoints.model_folder import Pretrained
    from ..generate import Sampling, Wish

LARGER = 1.43
DEFAULT_CLASSES = 16
# Of a class in the name of a file.
MOST_BYTES = 150
# Times the most tokens, or the widest aspect, of training: beyond it people are warned.
FAR = 2.0


def sample(
    model: Annotated[
        str, typer.Option(help="builtin:fashion, or the folder of a model, a training run or a saved FiTPipeline")
    ] = "builtin:fashion",
    labels: Annotated[
        list[str] | None,
        typer.Option(help="class names or numbers, comma-separated or repeated; default: all (at most 16)"),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(help="HEIGHTxWIDTH in pixels, repeatable; default: some from training and some never seen"),
    ] = None,
    num: Annotated[int, typer.Option(min=1, help="images per class and size")] = 1,
    steps: Steps = None,
    solver: Solver = None,
    guidance: Annotated[float, typer.Option(help="scale of classifier-free guidance; 1 is none")] = 2.0,
    guidance_interval: GuidanceInterval = (0.0, 1.0),
    guidance_power: GuidancePower = 0.0,
    guidance_channels: GuidanceChannels = None,
    time_shift: TimeShift = 1.0,
    cache_interval: CacheInterval = 1,
    extrapolation: Extrapolation = None,
    attention_scale: AttentionScale = None,
    autoencoder: Autoencoder = None,
    precision: Precision = None,
    device: Device = None,
    ignore_memory: IgnoreMemory = False,
    seed: Annotated[
        int, typer.Option(min=0, max=2**62, help="seed of the first image; each further image takes the next")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(help="folder for the images; default: the first free of outputs, outputs-2, ...")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="remove the images of another request from --out, and replace files")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON report instead of text")] = False,
) -> None:
    """Make images of each class in each size: one PNG per image, and a contact sheet.

    [bold]Examples[/bold]

      fitv2 sample

      fitv2 sample --labels trouser,bag --size 28x12 --size 40x16 --num 4

      fitv2 sample --model runs/mine --steps 50 --guidance 1.5 --seed 7

    The same seed gives the same image, whatever else is made with it. samples.json in the folder records the request;
    images of another request are never overwritten unless you add --overwrite.
    """
    from ..atomic import write_file
    from ..autoencoder import Decoding
    from ..device import choose_device, choose_precision
    from ..generate import generate
    from ..sheets import contact_sheet, save_sheet, to_image
    from .progress import image_progress

    where = choose_device(device)
    precision = choose_precision(precision, where)
    pretrained, codec = load_for_sampling(model, autoencoder, precision, where)
    sampling = build_sampling(
        pretrained,
        solver,
        guidance_channels,
        extrapolation,
        attention_scale,
        steps=steps,
        guidance=guidance,
        interval=guidance_interval,
        power=guidance_power,
        shift=time_shift,
        cache_interval=cache_interval,
    )
    wishes = list_wishes(pretrained, labels, size, num, seed, codec.factor)
    if not ignore_memory:
        check_memory(pretrained, wishes, sampling)
    if size:
        warn_of_sizes(pretrained, wishes, codec.factor)
    names = [picture_name(pretrained, wish, codec.factor) for wish in wishes]
    rows = [describe(pretrained, wish, codec.factor) for wish in wishes]
    request = {
        "model": model,
        "model_step": pretrained.step,
        "labels": list(dict.fromkeys(wish.label for wish in wishes)),
        "sizes": size or None,
        "num": num,
        "seed": seed,
        "solver": sampling.solver,
        "steps": sampling.steps,
        "guidance": guidance,
        "guidance_interval": list(guidance_interval),
        "guidance_power": guidance_power,
        "guidance_channels": guidance_channels,
        "time_shift": time_shift,
        "cache_interval": cache_interval,
        "extrapolation": extrapolation,
        "attention_scale": attention_scale,
        "autoencoder": autoencoder or pretrained.autoencoder,
        "precision": precision,
        "device": where.type,
    }
    out = free_folder() if out is None else out
    begin(out, request, names, overwrite)
    images: dict[int, Image.Image] = {}
    start = time.perf_counter()
    with image_progress("sampling", len(wishes)) as progress:

        def save(number: int, pixels: Tensor) -> None:
            image = images[number] = to_image(pixels)
            write_file(out / names[number], lambda draft: image.save(draft, "PNG"))
            progress(1)

        with Decoding(codec, save) as decoding:
            generate(pretrained.model, wishes, sampling, decoding.add)
    seconds = time.perf_counter() - start

    shown = shown_classes(pretrained, labels)
    captions = ["{class} {size[0]}x{size[1]}".format(**row) + ("" if row["seen"] else " *") for row in rows]
    sheet = out / SHEET
    save_sheet(contact_sheet([images[number] for number in range(len(wishes))], captions, shown), sheet)
    finish(out, request, [{"file": name, **row} for name, row in zip(names, rows, strict=True)])

    calls = sampling.model_calls
    report = {"model": model, "step": pretrained.step, "solver": sampling.solver, "steps": sampling.steps}
    report |= {"model_calls": calls, "guidance": guidance, "guidance_interval": guidance_interval}
    report |= {"seconds": round(seconds, 2), "sheet": str(sheet)}
    report["images"] = [{"file": str(out / name), **row} for name, row in zip(names, rows, strict=True)]
    if as_json:
        print(json.dumps(report))
        return
    spent = f"{counted(sampling.steps, 'step')}, {counted(calls, 'model call')}" if calls else "steps of its own choice"
    of_step = "" if pretrained.step is None else f" (step {pretrained.step})"
    print(
        f"{counted(len(rows), 'image')} by {model}{of_step} in {seconds:.1f} s: {sampling.solver}, "
        f"{spent}, guidance {guidance:g}."
    )
    if shown is not None:
        print(f"{shown}; choose others with --labels.")
    if unseen := sum(not row["seen"] for row in rows):
        verb = "has" if unseen == 1 else "have"
        print(f"{unseen} of them {verb} a size that training never had for the class (* on the sheet).")
    print(f"One PNG each in {out}{'/' if str(out) != '/' else ''}, all together in {sheet}")


def describe(pretrained: Pretrained, wish: Wish, factor: int) -> dict[str, Any]:
    """One image of a request: its class by name and number, size in pixels, seed, and whether training had the size."""
    return {
        "class": class_name(pretrained, wish.label),
        "label": wish.label,
        "size": [side * factor for side in wish.size],
        "seed": wish.seed,
        "seen": wish.size in own_sizes(pretrained, wish.label),
    }


def shown_classes(pretrained: Pretrained, labels: list[str] | None) -> str | None:
    """How many of the classes are shown where nobody has chosen them; None where all are."""
    classes = pretrained.model.config.num_classes
    return None if labels or classes <= DEFAULT_CLASSES else f"{DEFAULT_CLASSES} of {classes:,} classes"


def warn_of_sizes(pretrained: Pretrained, wishes: list[Wish], factor: int) -> None:
    """Says on stderr which size is far beyond those of training, in tokens or in aspect."""
    trained = [(h, w) for of_class in pretrained.shapes for h, w, _ in of_class]
    if not trained or pretrained.model.config.fixed_grid is not None:
        return
    most, widest = max(h * w for h, w in trained), max(aspect(size) for size in trained)
    for height, width in dict.fromkeys(wish.size for wish in wishes):
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


def list_wishes(
    pretrained: Pretrained,
    labels: list[str] | None,
    sizes: list[str] | None,
    num: int,
    seed: int,
    factor: int = 1,
) -> list[Wish]:
    """Every class at every size, `num` times, with seeds counting up; raises ValueError for unknown ones."""
    from ..generate import Wish, check_wish

    null, patch = pretrained.model.null_label, pretrained.model.config.patch_size
    if labels:
        # A name may itself have commas, as those of ImageNet do.
        parts = [part for text in labels for part in ([text] if text in pretrained.class_names else text.split(","))]
        chosen = [pretrained.classes.number(part.strip()) for part in parts]
    else:
        chosen = list(range(min(pretrained.model.config.num_classes, DEFAULT_CLASSES))) or [null]
    pairs = [
        (label, size)
        for label in chosen
        for size in ([latent_size(text, factor, patch) for text in sizes] if sizes else showcase(pretrained, label))
        for _ in range(num)
    ]
    wishes = [Wish(label, size, seed + i) for i, (label, size) in enumerate(pairs)]
    for wish in wishes:
        check_wish(wish, pretrained.model.config)
    return wishes


def own_sizes(pretrained: Pretrained, label: int) -> list[tuple[int, int]]:
    """The sizes that training had of a class, most frequent first; of all classes where it had none."""
    own = [(h, w) for of_class in pretrained.shapes[label : label + 1] for h, w, _ in of_class]
    return own or [(h, w) for of_class in pretrained.shapes for h, w, _ in of_class]


def showcase(pretrained: Pretrained, label: int) -> list[tuple[int, int]]:
    """A class's two most frequent sizes, and two that training never had of it: larger, and of a foreign aspect.

    Of a model of a fixed grid, its one size.
    """
    from ..generate import scaled_size

    own = own_sizes(pretrained, label)
    if pretrained.model.config.fixed_grid is not None:
        return own[:1]
    height, width = own[0]
    larger = scaled_size((height, width), LARGER, pretrained.model.config.patch_size)
    turned = [(w, h) for h, w in own] + [(height, 2 * width), (2 * height, width)]
    foreign = [size for size in turned if size not in own]
    return [*own[:2], larger, *foreign[:1]]


def latent_size(text: str, factor: int, patch: int) -> tuple[int, int]:
    """A size in pixels as one in latent pixels. Raises ValueError where it is not divisible, naming the nearest."""
    from ..generate import check_divisible

    size = parse_size(text)
    check_divisible(size, factor * patch)
    return size[0] // factor, size[1] // factor


def file_name(name: str) -> str:
    """A class name without what file systems would take amiss, and cut to leave room in the 255 bytes of a name."""
    return re.sub(r"[^\w-]+", "-", name).encode()[:MOST_BYTES].decode(errors="ignore")


def picture_name(pretrained: Pretrained, wish: Wish, factor: int) -> str:
    height, width = (side * factor for side in wish.size)
    return f"{file_name(class_name(pretrained, wish.label))}_{height}x{width}_seed{wish.seed}.png"


def class_name(pretrained: Pretrained, label: int) -> str:
    return pretrained.class_names[label] if label < len(pretrained.class_names) else "picture"


def check_memory(pretrained: Pretrained, wishes: list[Wish], sampling: Sampling) -> None:
    """Raises ValueError when a pass would not fit into the memory that is free now."""
    import torch

    from ..generate import pass_budget, passes
    from ..profiling.formula import forward_bytes
    from .memory import free_bytes

    config, weight = pretrained.model.config, next(pretrained.model.parameters())
    device, precision = weight.device, "fp32" if weight.dtype == torch.float32 else "bf16"
    tokens = [wish.tokens(config.patch_size) for wish in wishes]
    largest = max(passes(tokens, pass_budget(sampling, device)), key=lambda chosen: sum(tokens[i] for i in chosen))
    # With and without their classes, and beyond the weights, which are there already.
    needed = forward_bytes(config, 2 * sum(tokens[i] for i in largest), precision)
    free = free_bytes(device)
    if needed > free:
        height, width = max((wishes[i].size for i in largest), key=lambda size: size[0] * size[1])
        raise UserError(
            f"{counted(len(largest), 'image')} of up to {height}x{width} would need about {needed / 2**30:,.0f} GiB of "
            f"memory, and {free / 2**30:.0f} GiB are free; ask for a smaller --size, or add --ignore-memory"
        )

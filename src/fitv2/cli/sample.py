"""`fitv2 sample`: pictures of chosen classes and sizes, one PNG each and a contact sheet."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from .sampling import (
    AttentionScale,
    Autoencoder,
    Device,
    Extrapolation,
    FullEvery,
    GuidanceChannels,
    GuidanceInterval,
    GuidancePower,
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

    from ..generate import Sampling, Wish
    from ..pretrained import Pretrained

LARGER = 1.43


def sample(
    model: Annotated[
        str, typer.Option(help="builtin:fashion, or the folder of a model, a training run or a saved FiTPipeline")
    ] = "builtin:fashion",
    labels: Annotated[
        list[str] | None,
        typer.Option(help="class names or numbers, comma-separated or repeated; default all (16 at most)"),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(help="HEIGHTxWIDTH in pixels, repeatable; default: sizes of training and ones never seen"),
    ] = None,
    num: Annotated[int, typer.Option(min=1, help="pictures per class and size")] = 1,
    steps: Steps = 25,
    solver: Solver = None,
    guidance: Annotated[float, typer.Option(help="scale of classifier-free guidance; 1 is none")] = 2.0,
    guidance_interval: GuidanceInterval = (0.0, 1.0),
    guidance_power: GuidancePower = 0.0,
    guidance_channels: GuidanceChannels = None,
    time_shift: TimeShift = 1.0,
    full_every: FullEvery = 1,
    extrapolation: Extrapolation = None,
    attention_scale: AttentionScale = None,
    autoencoder: Autoencoder = None,
    precision: Precision = None,
    device: Device = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**62, help="the first picture's seed; each further one has the next")
    ] = 0,
    out: Annotated[Path, typer.Option(help="folder for the pictures")] = Path("outputs"),
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON report instead of text")] = False,
) -> None:
    """Make pictures: every class at every size, each its own PNG, and a contact sheet of all.

    [bold]Examples[/bold]

      fitv2 sample

      fitv2 sample --labels trouser,bag --size 28x12 --size 40x16 --num 4

      fitv2 sample --model runs/mine --steps 50 --guidance 1.5 --seed 7

    The same seed gives the same picture, whatever else is made along with it.
    """
    from ..atomic import write_file
    from ..device import choose_device, choose_precision
    from ..generate import generate
    from ..sheets import contact_sheet, to_image
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
        full_every=full_every,
    )
    wishes = list_wishes(pretrained, labels, size, num, seed, codec.factor)
    check_memory(pretrained, wishes, sampling)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder for the pictures")
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / picture_name(pretrained, wish, codec.factor) for wish in wishes]
    images: dict[int, Image.Image] = {}
    start = time.perf_counter()
    with image_progress("sampling", len(wishes)) as progress:

        def save(number: int, latent: Tensor) -> None:
            image = images[number] = to_image(codec.decode(latent))
            write_file(paths[number], lambda draft: image.save(draft, "PNG"))
            progress(1)

        generate(pretrained.model, wishes, sampling, save)
    seconds = time.perf_counter() - start

    rows = []
    for path, wish in zip(paths, wishes, strict=True):
        size, name = [side * codec.factor for side in wish.size], class_name(pretrained, wish.label)
        seen = wish.size in own_sizes(pretrained, wish.label)
        rows.append({"file": str(path), "class": name, "size": size, "seed": wish.seed, "seen": seen})
    captions = ["{class} {size[0]}x{size[1]}".format(**row) + ("" if row["seen"] else " *") for row in rows]
    sheet = out / "sheet.png"
    contact_sheet([images[number] for number in range(len(wishes))], captions).save(sheet)

    calls = sampling.model_calls
    report = {"model": model, "solver": sampling.solver, "steps": steps, "model_calls": calls, "guidance": guidance}
    report |= {
        "guidance_interval": guidance_interval,
        "seconds": round(seconds, 2),
        "sheet": str(sheet),
        "images": rows,
    }
    if as_json:
        print(json.dumps(report))
        return
    unseen = sum(not row["seen"] for row in rows)
    print(
        f"{len(rows)} pictures by {model} in {seconds:.1f} s: {sampling.solver}, "
        f"{f'{steps} steps, {calls} model calls' if calls else 'steps of its own choice'}, guidance {guidance:g}."
    )
    if unseen:
        print(
            f"{unseen} of them have a size that is not among those of their class in training (marked * on the sheet)."
        )
    print(f"One PNG each in {out}{'/' if str(out) != '/' else ''}, all together in {sheet}")


def list_wishes(
    pretrained: Pretrained,
    labels: list[str] | None,
    sizes: list[str] | None,
    num: int,
    seed: int,
    factor: int = 1,
) -> list[Wish]:
    """Every class at every size, `num` times, with seeds counting up; raises ValueError for unknown ones."""
    from ..generate import Wish

    null, patch = pretrained.model.null_label, pretrained.model.config.patch_size
    if labels:
        # A name may itself have commas, as those of ImageNet do.
        parts = [part for text in labels for part in ([text] if text in pretrained.class_names else text.split(","))]
        chosen = [pretrained.classes.number(part.strip()) for part in parts]
    else:
        chosen = list(range(min(pretrained.model.config.num_classes, 16))) or [null]
    pairs = [
        (label, size)
        for label in chosen
        for size in ([latent_size(text, factor, patch) for text in sizes] if sizes else showcase(pretrained, label))
        for _ in range(num)
    ]
    return [Wish(label, size, seed + i) for i, (label, size) in enumerate(pairs)]


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
    """A class name without what file systems would take amiss."""
    return re.sub(r"[^\w-]+", "-", name)


def picture_name(pretrained: Pretrained, wish: Wish, factor: int) -> str:
    height, width = (side * factor for side in wish.size)
    return f"{file_name(class_name(pretrained, wish.label))}_{height}x{width}_seed{wish.seed}.png"


def class_name(pretrained: Pretrained, label: int) -> str:
    return pretrained.class_names[label] if label < len(pretrained.class_names) else "picture"


def check_memory(pretrained: Pretrained, wishes: list[Wish], sampling: Sampling) -> None:
    """Raises ValueError when a pass would not fit into the memory that is free now."""
    import torch

    from ..generate import pass_budget, passes
    from ..model.cost import forward_bytes
    from .memory import free_bytes

    config, weight = pretrained.model.config, next(pretrained.model.parameters())
    device, precision = weight.device, "no" if weight.dtype == torch.float32 else "bf16"
    tokens = [wish.tokens(config.patch_size) for wish in wishes]
    largest = max(passes(tokens, pass_budget(sampling, device)), key=lambda chosen: sum(tokens[i] for i in chosen))
    # With and without their classes, and beyond the weights, which are there already.
    needed = forward_bytes(config, 2 * sum(tokens[i] for i in largest), precision)
    free = free_bytes(device)
    if needed > free:
        height, width = max((wishes[i].size for i in largest), key=lambda size: size[0] * size[1])
        raise UserError(
            f"{len(largest)} pictures of up to {height}x{width} together would need about {needed / 2**30:.0f} GiB of "
            f"memory, and {free / 2**30:.0f} GiB are free; ask for a smaller --size"
        )

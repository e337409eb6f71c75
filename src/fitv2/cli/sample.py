"""`fitv2 sample`: images of chosen classes and sizes, one PNG each and a contact sheet."""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from ..messages import counted
from .requested import check_memory, describe, image_name, list_specs, shown_classes, warn_of_sizes
from .samples import SHEET, begin, check_folder, finish, free_folder
from .sampling import (
    ADVISED,
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
    guidance_option,
    load_for_sampling,
)

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ..autoencoder import KLAutoencoder, Pixels
    from ..checkpoints.model_folder import Pretrained
    from ..sampling.spec import SampleSpec, Sampling

BUILTIN = "builtin:fashion"
# Settings of `Sampling` by the names that a request gives them.
REQUESTED = {"solver": "solver", "steps": "steps", "guidance": "guidance", "guidance_power": "power"}
REQUESTED |= {"time_shift": "shift", "cache_interval": "cache_interval"}
image_option = partial(typer.Option, rich_help_panel="Images")
output_option = partial(typer.Option, rich_help_panel="Output")


def sample(
    model: Annotated[
        str | None,
        typer.Argument(
            help=f"{BUILTIN} (default), or the folder of a model, a training run or a saved FiTPipeline",
            show_default=False,
        ),
    ] = None,
    model_option: Annotated[str | None, typer.Option("--model", "-m", hidden=True)] = None,
    labels: Annotated[
        list[str] | None,
        image_option(
            "--labels", "-l", help="class names or numbers, comma-separated or repeated; default: all (at most 16)"
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        image_option(
            "--size",
            "-s",
            help="HEIGHTxWIDTH in pixels, repeatable; default: some from training and some never seen",
        ),
    ] = None,
    per_class: Annotated[int | None, image_option(min=1, help="images per class and size; default: 1")] = None,
    num: Annotated[int | None, typer.Option(min=1, hidden=True)] = None,
    num_images: Annotated[
        int | None, image_option("--num-images", "-n", min=1, help="images in all, the classes in turn")
    ] = None,
    seed: Annotated[int, image_option(min=0, help="seed of the first image; each further image takes the next")] = 0,
    steps: Steps = None,
    solver: Solver = None,
    guidance: Annotated[
        float | None,
        guidance_option("--guidance", "-g", help=f"scale of classifier-free guidance; 1 is none; {ADVISED} 2"),
    ] = None,
    guidance_interval: GuidanceInterval = None,
    guidance_power: GuidancePower = None,
    guidance_channels: GuidanceChannels = None,
    time_shift: TimeShift = None,
    cache_interval: CacheInterval = None,
    extrapolation: Extrapolation = None,
    attention_scale: AttentionScale = None,
    autoencoder: Autoencoder = None,
    precision: Precision = None,
    device: Device = None,
    ignore_memory: IgnoreMemory = False,
    out: Annotated[
        Path | None,
        output_option("--out", "-o", help="folder for the images; default: the first free of outputs, outputs-2, ..."),
    ] = None,
    overwrite: Annotated[
        bool,
        output_option("--overwrite", help="remove the images of another request from --out, and replace files"),
    ] = False,
    as_json: Annotated[bool, output_option("--json", help="print a JSON report instead of text")] = False,
) -> None:
    """Make images of each class in each size: one PNG per image, and a contact sheet.

    [bold]Examples[/bold]

      fitv2 sample

      fitv2 sample --labels trouser,bag --size 28x12 --size 40x16 --per-class 4

      fitv2 sample runs/mine --steps 50 --guidance 1.5 --seed 7

    The same seed gives the same image, whatever else is made with it. samples.json in the folder records the request;
    images of another request are never overwritten unless you add --overwrite. A model folder may recommend settings
    in a sampling.json: they are the defaults of the options about sampling and guidance.
    """
    from ..device import choose_device, choose_precision
    from ..locks import locked

    name = one_model(model, model_option)
    where = choose_device(device)
    precision = choose_precision(precision, where)
    pretrained, codec = load_for_sampling(name, autoencoder, precision, where)
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
    per_class = renamed(num, per_class)
    specs = list_specs(pretrained, labels, size, per_class, num_images, seed, codec.factor)
    if not ignore_memory:
        check_memory(pretrained, specs, sampling)
    if size:
        warn_of_sizes(pretrained, specs, codec.factor)
    request = {
        "model": name,
        "model_step": pretrained.step,
        "labels": list(dict.fromkeys(spec.label for spec in specs)),
        "sizes": size or None,
        **({"num": per_class or 1} if num_images is None else {"num_images": num_images}),
        "seed": seed,
        **{name: getattr(sampling, own) for name, own in REQUESTED.items()},
        "guidance_interval": list(sampling.interval),
        "guidance_channels": sampling.channels and sampling.channels // pretrained.model.config.patch_size**2,
        "extrapolation": extrapolation,
        "attention_scale": attention_scale,
        "autoencoder": autoencoder or pretrained.autoencoder,
        "precision": precision,
        "device": where.type,
    }
    out = free_folder() if out is None else out
    check_folder(out)
    with locked(out, "a fitv2 sample"):
        report = make(pretrained, codec, specs, sampling, out, request, overwrite, shown_classes(pretrained, labels))
    print(json.dumps(report) if as_json else text_of(report, pretrained, labels, out))


def one_model(argument: str | None, option: str | None) -> str:
    """Returns the model that is named, by the argument or by --model. Raises UserError if both name one."""
    if argument is not None and option is not None:
        raise UserError(f"two models are named, {argument} and --model {option}; give one")
    return argument or option or BUILTIN


def renamed(num: int | None, per_class: int | None) -> int | None:
    """Returns the number per class and size; --num is the name of an older version."""
    if num is not None and per_class is None:
        print("note: --num is now called --per-class", file=sys.stderr)
    return num if per_class is None else per_class


def make(
    pretrained: Pretrained,
    codec: Pixels | KLAutoencoder,
    specs: list[SampleSpec],
    sampling: Sampling,
    out: Path,
    request: dict[str, Any],
    overwrite: bool,
    note: str | None,
) -> dict[str, Any]:
    """Makes the images, their sheet and samples.json in the folder, and returns the report."""
    from ..atomic import write_file
    from ..autoencoder import Decoding
    from ..sampling.generate import generate
    from ..sheets import contact_sheet, save_sheet, to_image
    from .progress import image_progress

    names = [image_name(pretrained, spec, codec.factor) for spec in specs]
    rows = [describe(pretrained, spec, codec.factor) for spec in specs]
    begin(out, request, names, overwrite)
    images: dict[int, Image.Image] = {}
    start = time.perf_counter()
    with image_progress("sampling", len(specs)) as progress:

        def save(number: int, pixels: Tensor) -> None:
            image = images[number] = to_image(pixels)
            write_file(out / names[number], lambda draft: image.save(draft, "PNG"))
            progress(1)

        with Decoding(codec, save) as decoding:
            generate(pretrained.model, specs, sampling, decoding.add)
    seconds = time.perf_counter() - start
    captions = [
        f"{row['class'] or 'image'} {'x'.join(map(str, row['size']))}{'' if row['seen'] else ' *'}" for row in rows
    ]
    sheet = contact_sheet([images[number] for number in range(len(specs))], captions, note)
    save_sheet(sheet, out / SHEET)
    finish(out, request, [{"file": name, **row} for name, row in zip(names, rows, strict=True)])
    report = {"model": request["model"], "step": pretrained.step}
    report |= {name: request[name] for name in ("solver", "steps", "guidance", "guidance_interval")}
    report |= {"model_calls": sampling.model_calls, "seconds": round(seconds, 2), "sheet": str(out / SHEET)}
    return report | {"images": [{"file": str(out / name), **row} for name, row in zip(names, rows, strict=True)]}


def text_of(report: dict[str, Any], pretrained: Pretrained, labels: list[str] | None, out: Path) -> str:
    """Returns the report as lines for people."""
    calls, (low, high) = report["model_calls"], report["guidance_interval"]
    spent = "steps of its own choice" if calls is None else f"{counted(report['steps'], 'step')}, "
    spent += "" if calls is None else counted(calls, "model call")
    of_step = "" if report["step"] is None else f" (step {report['step']})"
    within = "" if (low, high) == (0, 1) else f" between times {low:g} and {high:g}"
    lines = [
        f"{counted(len(report['images']), 'image')} by {report['model']}{of_step} in {report['seconds']:.1f} s: "
        f"{report['solver']}, {spent}, guidance {report['guidance']:g}{within}."
    ]
    if shown := shown_classes(pretrained, labels):
        lines.append(f"{shown}; choose others with --labels.")
    if unseen := sum(not row["seen"] for row in report["images"]):
        verb = "has" if unseen == 1 else "have"
        lines.append(f"{unseen} of them {verb} a size that training never had for the class (* on the sheet).")
    lines.append(f"One PNG each in {out}{'/' if str(out) != '/' else ''}, all together in {report['sheet']}")
    return "\n".join(lines)

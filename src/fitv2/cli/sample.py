"""`fitv2 sample`: images of chosen classes and sizes, one PNG each and a contact sheet."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from ..messages import counted
from ..sampling.editing_defaults import ANCHORS, VARIATION, Anchor
from .options import ADVISED, OPTIONS, IgnoreMemory, Json, ModelOptions, guidance_option, out_option, with_model_options
from .output import show
from .requests import check_memory, describe, edits_of, list_specs, read_prompts, shown, shown_classes, warn_of_sizes
from .sample_folder import SHEET, begin, finish, free_folder

if TYPE_CHECKING:
    from PIL import Image

    from ..images.edits import Edit
    from ..sampling.spec import SampleSpec, Sampling
    from .options import LoadedModel

BUILTIN = "builtin:fashion"
# Images on the contact sheet, and made at a time: thousands would take gigabytes.
MOST_SHOWN = 400
image_option = partial(typer.Option, rich_help_panel="Images")
edit_option = partial(typer.Option, rich_help_panel="Beginning with an image", show_default=False)


@with_model_options
def sample(
    *,
    model: Annotated[
        str | None,
        typer.Argument(
            help=f"{BUILTIN} (default), or the folder of a model, a run, a checkpoint or a saved FiTPipeline",
            show_default=False,
        ),
    ] = None,
    model_option: Annotated[str | None, typer.Option("--model", "-m", hidden=True)] = None,
    labels: Annotated[
        list[str] | None,
        image_option(
            "--labels", "-l", metavar="NAME,...", help="class names or numbers, comma-separated; default: the first 16"
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        image_option(
            "--prompt", "-p", help="for a text-conditioned model; repeatable; default: examples from the model folder"
        ),
    ] = None,
    prompts: Annotated[Path | None, image_option(help="a text file with a prompt per line")] = None,
    negative_prompt: Annotated[str, image_option(help="what guidance leads away from", show_default=False)] = "",
    size: Annotated[
        list[str] | None, image_option("--size", "-s", help="HEIGHTxWIDTH, repeatable; default: several")
    ] = None,
    per_class: Annotated[int | None, image_option(min=1, help="images per class and size; default: 1")] = None,
    num_images: Annotated[
        int | None, image_option("--num-images", "-n", min=1, help="images per --size, cycling through the classes")
    ] = None,
    seed: Annotated[int, image_option(min=0, help="seed of the first image; later images count up")] = 0,
    init_image: Annotated[
        Path | None, edit_option(help="begin with this image instead of noise; a larger --size extends it")
    ] = None,
    mask: Annotated[Path | None, edit_option(help="an image of the same size, white where to redraw")] = None,
    strength: Annotated[
        float | None,
        edit_option(help=f"how much changes, above 0 to 1; default: {VARIATION}, or 1 with --mask or a larger --size"),
    ] = None,
    anchor: Annotated[
        Anchor, edit_option(metavar="NAME", help=f"where the image lies in a larger image: {', '.join(ANCHORS)}")
    ] = "center",
    guidance: Annotated[
        float | None, guidance_option("--guidance", "-g", help=f"scale; 1: no guidance; {ADVISED} 2")
    ] = None,
    options: ModelOptions,
    ignore_memory: IgnoreMemory = False,
    out: Annotated[Path | None, out_option(help="default: the first unused of outputs, outputs-2, ...")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace images of a different request")] = False,
    as_json: Json = False,
) -> None:
    """Make images of each class or prompt in each size: one PNG per image, and a contact sheet.

    [bold]Examples[/bold]

      fitv2 sample
      fitv2 sample --labels trouser,bag --size 28x12 --size 40x16 --per-class 4
      fitv2 sample runs/mine --steps 50 --guidance 1.5 --seed 7
      fitv2 sample runs/drawings --prompt "a red apple" --prompt "a cat" --size 128x128 --size 64x192
      fitv2 sample runs/drawings -p "a garden" --init-image cat.png --size 128x384 --anchor left

    Up to rounding, the same seed gives the same image, whatever else is made alongside it. samples.json in the folder
    records the request; images of a different request are replaced only with --overwrite. If a model folder has a
    sampling.json, it sets the defaults of the sampling and guidance options.
    """
    from ..sampling.generate import calls_from
    from ..sampling.spec import first_size
    from ..system.device import choose_device
    from ..system.locks import locked

    if model is not None and model_option is not None:
        raise UserError(f"two models are named, {model} and --model {model_option}; give one")
    if model_option is not None:
        print("Note: the model is now the first word: fitv2 sample MODEL, without --model", file=sys.stderr)
    name = model or model_option or BUILTIN
    where = choose_device(options.device)
    loaded = options.load(name, where)
    pretrained, codec = loaded.pretrained, loaded.codec
    sampling = options.sampling(pretrained, guidance, codec.factor)
    if init_image is not None:
        sampling = in_one_pass(sampling, options)
    texts = read_prompts(prompt or [], prompts), negative_prompt
    edits, beginning = edits_of(init_image, mask, strength, anchor, size, pretrained, codec)
    if negative_prompt and sampling.guidance == 1:
        raise UserError(
            "--negative-prompt is what guidance leads away from, and --guidance 1 is none: omit one of them"
        )
    specs = list_specs(pretrained, labels, size or list(edits), per_class, num_images, seed, codec.factor, *texts)
    if not ignore_memory:
        check_memory(pretrained, specs, sampling, codec.factor, loaded.text)
    if size and sampling.upscale_from is None and sampling.window is None:
        warn_of_sizes(pretrained, specs, codec.factor)
    number = {"num": per_class or 1} if num_images is None else {"images_per_size": num_images}
    request = {"model": name, **request_of(loaded, options, sampling, specs), **number}
    request |= {"sizes": size or None, "seed": seed, "device": where.type, **beginning}
    out = out or free_folder()
    rows = [describe(pretrained, spec, codec.factor) for spec in specs]
    note = shown_classes(pretrained, labels)
    with locked(out, "a fitv2 sample"):
        begin(out, request, [row["file"] for row in rows], overwrite)
        begun = [edits[f"{row['size'][0]}x{row['size'][1]}"] for row in rows] if edits else None
        seconds = make(loaded, specs, sampling, out, rows, note, begun)
        finish(out, request, rows)
    report = {"model": name, "step": pretrained.step}
    report |= {key: request[key] for key in ("solver", "steps", "guidance", "guidance_interval", "internal_guidance")}
    patch = pretrained.model.config.patch_size
    twice = [spec for spec in specs if first_size(spec.size, sampling, patch) != spec.size]
    begins = 0.0 if begun is None else min(1 - edit.strength for edit in begun)
    report |= {"model_calls": calls_from(begins, sampling), "seconds": round(seconds, 2), "two_passes": len(twice)}
    report["calls_of_second_pass"] = calls_from(sampling.upscale_time, sampling) if twice else 0
    report |= {"sheet": str(out / SHEET), "images": [row | {"file": str(out / row["file"])} for row in rows]}
    show(report, text_of(report, note, out), as_json)


def in_one_pass(sampling: Sampling, options: ModelOptions) -> Sampling:
    """Returns the settings for images that begin with an image. Raises UserError if they ask for anything else."""
    from ..sampling.editing import check_solver

    if options.upscale_from or options.upscale_time is not None:
        raise UserError("--upscale-from and --upscale-time are for images that begin with noise: omit --init-image")
    check_solver(sampling)
    return sampling.in_one_pass()


def request_of(
    loaded: LoadedModel, options: ModelOptions, sampling: Sampling, specs: list[SampleSpec]
) -> dict[str, Any]:
    """Returns what samples.json says of the model, the sampling and the subjects."""
    from ..sampling.spec import TWO_PASSES

    pretrained, factor = loaded.pretrained, loaded.codec.factor
    request = {
        "model_step": pretrained.step,
        "labels": list(dict.fromkeys(spec.label for spec in specs)),
        **{option: getattr(sampling, name) for option, name in OPTIONS.items()},
        "guidance": sampling.guidance,
        "guidance_interval": list(sampling.interval),
        "guidance_channels": sampling.channels and sampling.channels // pretrained.model.config.patch_size**2,
        "internal_interval": list(sampling.internal_interval),
        "shift_tokens": sampling.shift_tokens,
        "extrapolation": options.extrapolation,
        "attention_scale": options.attention_scale,
        "autoencoder": options.autoencoder or pretrained.autoencoder,
        "precision": loaded.precision,
    }
    if sampling.upscale_from is not None:
        request |= {key: getattr(sampling, key) for key in TWO_PASSES}
    if sampling.window is not None:
        request |= {"window": [side * factor for side in sampling.window]}
    if loaded.text is not None:
        request |= {"prompts": list(dict.fromkeys(spec.prompt for spec in specs)), "text_encoder": loaded.text.name}
        request |= {"negative_prompt": specs[0].negative_prompt}
    return request


def make(
    loaded: LoadedModel,
    specs: list[SampleSpec],
    sampling: Sampling,
    out: Path,
    rows: list[dict[str, Any]],
    note: str | None,
    edits: list[Edit] | None,
) -> float:
    """Makes the images and their sheet in the folder, and returns the seconds that the images took."""
    from ..images.make_images import make_images
    from ..images.sheets import contact_sheet, save_sheet
    from ..system.atomic import write_file
    from .progress import image_progress

    start = time.perf_counter()
    with image_progress("sampling", len(specs)) as progress:

        def save(first: int, number: int, image: Image.Image) -> None:
            write_file(out / rows[first + number]["file"], lambda draft: image.save(draft, "PNG"))
            progress(1)

        images: list[Image.Image] = []
        for first in range(0, len(specs), MOST_SHOWN):  # Only images of the sheet are kept in memory.
            part = slice(first, first + MOST_SHOWN)
            model, begun = loaded.pretrained.model, edits and edits[part]
            made = make_images(model, loaded.codec, specs[part], sampling, partial(save, first), loaded.text, begun)
            images = images or made
    seconds = time.perf_counter() - start
    captions = [
        f"{shown(row.get('prompt')) or row['class'] or 'image'} {'x'.join(map(str, row['size']))}"
        f"{'' if row['seen'] else ' *'}"
        for row in rows
    ]
    if len(specs) > MOST_SHOWN:
        note = f"the first {MOST_SHOWN} of {counted(len(specs), 'image')}{'; ' + note if note else ''}"
    save_sheet(contact_sheet(images, captions[:MOST_SHOWN], note), out / SHEET)
    return seconds


def text_of(report: dict[str, Any], note: str | None, out: Path) -> Iterator[str]:
    """Yields the report as lines for people."""
    calls, (low, high) = report["model_calls"], report["guidance_interval"]
    spent = (
        f"{counted(report['steps'], 'step')}, {counted(calls, 'model call')}" if calls else "steps of its own choice"
    )
    of_step = "" if report["step"] is None else f" (step {report['step']})"
    within = "" if (low, high) == (0, 1) else f" between times {low:g} and {high:g}"
    internal = report["internal_guidance"]
    inside = "" if internal == 1 else f", internal guidance {internal:g}"
    yield (
        f"{counted(len(report['images']), 'image')} by {report['model']}{of_step} in {report['seconds']:.1f} s: "
        f"{report['solver']}, {spent}, guidance {report['guidance']:g}{within}{inside}."
    )
    if twice := report["two_passes"]:
        second = report["calls_of_second_pass"]
        by = f" by {counted(second, 'model call')}" if second else ""
        yield f"{counted(twice, 'image')} beyond the sizes of training: made small first, then in full size{by}."
    if note:
        yield f"{note}; choose others with --labels."
    if unseen := sum(not row["seen"] for row in report["images"]):
        yield f"{counted(unseen, 'image')} in a size that training never had for the class (* on the sheet)."
    yield f"One PNG each in {out}, all together in {report['sheet']}"

"""`fitv2 profile`: what models cost at given sizes, by formula and measured on this machine."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from ..messages import advised, counted
from ..precision import Precision
from .options import Device, IgnoreMemory, Json, check_pixels, load_any, parse_size, refuse_options
from .output import show_table

if TYPE_CHECKING:
    import torch

    from ..profiling.profile import Profile, Subject

# Image pixels per latent pixel of the published models, which the presets are.
FACTOR = 8
DEFAULT_SIZE = (256, 256)
DEFAULT_REPEATS = 5
# Where the output is no terminal, tables are as wide as they need.
WIDTH = 110
FORMULA = ("model", "image", "tokens", "parameters", "GMAC", "GFLOP", "forward", "step", "training")
MEASURED = ("model", "image", "pass", "seconds", "tokens/s", "memory", "of peak")
WORDS = ("model", "image", "pass")
ABOUT_FORMULAS = """\
GMAC: multiply-accumulates of linear layers in a forward pass (the "GFLOPs" of Table I). GFLOP: two FLOPs for
each, plus attention; a training step takes three times as many. Memory: forward, beyond the weights; step, kept for
the backward pass; training, all of it, with weights, average, gradients and AdamW's moments. A model of text
is given captions of {caption} tokens here; the text encoder is not counted."""
ABOUT_MEASURING = """\
Memory: the peak beyond weights and moments, for a step with its gradients. "of peak": the GFLOP above, compared with
large matrix products measured in turn with the models, {peak:,.0f} GFLOP/s at most."""
measure_option = partial(typer.Option, rich_help_panel="With --measure")


def profile(
    context: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="presets (FiTv2-B/2, -L/2, -XL/2, -3B/2, FiT-B/2, -XL/2), DiT and SiT to compare with (SiT-XL/2), "
            "builtin:fashion, or folders of models, runs or saved FiTPipelines; default: those of Table I",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            "--size",
            "-s",
            help="HEIGHTxWIDTH in pixels, repeatable; default 256x256, or the model's most frequent size",
        ),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", "-b", min=1, max=10**6, help="images in a forward pass or step")] = 1,
    precision: Annotated[Precision, typer.Option(help="of products, like training.precision")] = "bf16",
    device: Device = None,
    ignore_memory: IgnoreMemory = False,
    measure: Annotated[bool, measure_option("--measure", help="also run each model (XL/2 needs 15 GiB)")] = False,
    compiled: Annotated[bool, measure_option("--compile", help="first compile the blocks (takes a minute)")] = False,
    repeats: Annotated[
        int | None, measure_option(min=1, help=f"measure the median of this many runs; default: {DEFAULT_REPEATS}")
    ] = None,
    autoencoder: Annotated[str | None, typer.Option(help="folder or hub id; default: the model's own")] = None,
    plot: Annotated[Path | None, typer.Option(help="also draw the figures into this PNG file")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the --plot file if it exists")] = False,
    as_json: Json = False,
) -> None:
    """Show what models cost: calculated parameters, FLOPs and memory; measured time and fraction of peak.

    [bold]Examples[/bold]

      fitv2 profile
      fitv2 profile FiTv2-B/2 FiTv2-XL/2 --size 256x256 --size 160x480 --batch 8
      fitv2 profile FiTv2-B/2 builtin:fashion --measure --plot cost.png
      fitv2 profile FiTv2-B/2 DiT-B/2 --measure --compile --batch 8
      fitv2 profile runs/mine --measure --precision fp32 --json

    GMAC counts the multiply-accumulates of linear layers (the "GFLOPs" of the paper's Table I). GFLOP counts
    each as two FLOPs and adds attention. The formulas need no memory, so they work for any model at any size.
    """
    import torch

    from ..profiling.formula import CAPTION
    from ..profiling.profile import TABLE_1, Case, Profile, cost_of
    from ..profiling.profile import measure as measured
    from ..system.device import choose_device, choose_precision
    from .progress import image_progress

    if not measure:
        refuse_options(context, {"repeats", "compiled", "device", "ignore_memory"}, "without --measure")
    if plot is not None and plot.is_dir():
        raise UserError(f"--plot {plot} is a folder; name a PNG file")
    if plot is not None and plot.exists() and not overwrite:
        raise UserError(f"--plot {plot} is there already; name another file, or add --overwrite to replace it")
    where = choose_device(device)
    sizes = [parse_size(text) for text in size or []]
    subjects = [find_subject(name, autoencoder) for name in models or TABLE_1]
    cases = [Case(subject, s, batch, precision) for subject in subjects for s in sizes or [subject.size]]
    profiles = [Profile(case, cost_of(case)) for case in cases]
    if measure:
        choose_precision(precision, where)  # Warns of a slow one.
        runs = repeats or DEFAULT_REPEATS
        with_step = [ignore_memory or fits(p, where) for p in profiles]
        with image_progress("measuring", sum(2 + step for step in with_step) * (runs + 1)) as done:
            profiles = [
                replace(p, measured=measured(p.case, where, runs, done, step, compiled))
                for p, step in zip(profiles, with_step, strict=True)
            ]
    if plot is not None:
        from ..drawing import write_page
        from ..profiling.plots import panels

        write_page(plot, panels(profiles))
    threads = torch.get_num_threads()
    if as_json:
        about = {"precision": precision, "compiled": compiled, "device": where.type, "threads": threads}
        print(json.dumps(about | {"profiles": [p.report() for p in profiles], "plot": plot and str(plot)}))
        return
    images = f"{counted(batch, 'image')}, {'float32' if precision == 'fp32' else 'bf16'}"
    show_table(FORMULA, map(formula_row, profiles), f"By formula: {images}", WORDS, WIDTH)
    print(ABOUT_FORMULAS.format(caption=CAPTION))
    if measure:
        machine = f"a CPU, {counted(threads, 'thread')}" if where.type == "cpu" else f"a GPU ({where.type})"
        title = f"\nMeasured on {machine}{', blocks of FiT and FiTv2 compiled' if compiled else ''}"
        show_table(MEASURED, [row for p in profiles for row in measured_rows(p)], title, WORDS, WIDTH)
        print(ABOUT_MEASURING.format(peak=max(p.measured.peak_flops for p in profiles if p.measured) / 1e9))
    if plot is not None:
        print(f"Drawn in {plot}")


def find_subject(name: str, autoencoder: str | None) -> Subject:
    """Returns a preset, or a model on disk with the most frequent size of its training, if known. Raises UserError."""
    from ..checkpoints.model_folder import BUILTIN
    from ..images.autoencoder import read_factor
    from ..model.presets import PRESETS
    from ..profiling.profile import Subject

    if name in PRESETS:
        return Subject(name, PRESETS[name], read_factor(autoencoder) if autoencoder else FACTOR, DEFAULT_SIZE)
    if not name.startswith(BUILTIN) and not Path(name).exists():
        raise UserError(
            f"there is no preset and no folder {name!r}"
            + advised(name, PRESETS, f"choose from {', '.join(PRESETS)} and builtin:fashion, which ships with fitv2")
        )
    pretrained = load_any(name, None)
    config, autoencoder = pretrained.model.config, autoencoder or pretrained.autoencoder
    if autoencoder is None:
        check_pixels(name, config.in_channels)
    factor, counts = read_factor(autoencoder), Counter()
    for of_class in pretrained.shapes:
        for height, width, count in of_class:
            counts[height * factor, width * factor] += count
    return Subject(name, config, factor, counts.most_common(1)[0][0] if counts else DEFAULT_SIZE)


def fits(profile: Profile, device: torch.device) -> bool:
    """Whether a training step fits into the free memory. Raises UserError if not even a forward pass does."""
    from ..system.device import lack_of_memory

    name, cost = profile.case.subject.name, profile.cost
    # Random weights are drawn in float32, before they become bfloat16.
    if lack := lack_of_memory(f"a forward pass of {name}", 4 * cost.parameters + cost.forward_bytes, device):
        raise UserError(f"{lack}: name a smaller model, --size or --batch, or add --ignore-memory")
    return lack_of_memory(f"a step of {name}", cost.training_bytes, device) is None


def formula_row(profile: Profile) -> Sequence[str]:
    """Returns the cells of a profile in the table of formulas."""
    cost = profile.cost
    counts = f"{cost.parameters / 1e6:,.2f} M", f"{cost.linear_macs / 1e9:,.2f}", f"{cost.forward_flops / 1e9:,.2f}"
    sizes = map(memory, (cost.forward_bytes, cost.activation_bytes, cost.training_bytes))
    return [*name_and_size(profile), str(profile.case.tokens), *counts, *sizes]


def measured_rows(profile: Profile) -> Iterator[Sequence[str]]:
    """One for the forward pass, one for the training step."""
    for name in ("forward", "step"):
        run = getattr(profile.measured, name)
        cells = ("does not fit", "-", memory(profile.cost.training_bytes), "-")
        if run is not None:
            rate = f"{run.tokens_per_second:,.0f}"
            cells = (f"{run.seconds:.4f}", rate, memory(run.bytes), f"{100 * run.share:.0f} %")
        yield [*name_and_size(profile), name, *cells]


def name_and_size(profile: Profile) -> tuple[str, str]:
    """Returns the first two cells of every row."""
    height, width = profile.case.size
    return profile.case.subject.name, f"{height}x{width}"


def memory(size: int) -> str:
    """Returns a number of bytes as text in MiB or GiB."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"

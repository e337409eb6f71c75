"""`fitv2 profile`: what models cost at given sizes, by formula and measured on this machine."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from .sampling import Device, IgnoreMemory, check_pixels, load_any, parse_size

if TYPE_CHECKING:
    import torch

    from ..profiling.profile import Profile, Subject

# Image pixels per latent pixel of the published models, which the presets are.
FACTOR = 8
DEFAULT_SIZE = (256, 256)
DEFAULT_REPEATS = 5
MEASURING = "With --measure"


def profile(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="presets (FiTv2-B/2, -L/2, -XL/2, -3B/2, FiT-B/2, -XL/2), DiT and SiT to compare with (SiT-XL/2), "
            "builtin:fashion, or folders of models, runs or saved FiTPipelines; default: those of Table I",
            metavar="MODEL",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            "--size",
            "-s",
            help="HEIGHTxWIDTH of an image in pixels, repeatable; default 256x256, or for a model on disk the most "
            "frequent size of its training",
        ),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", "-b", min=1, help="images in a forward pass or step")] = 1,
    precision: Annotated[str, typer.Option(metavar="bf16|fp32", help="of products, as training.precision")] = "bf16",
    device: Device = None,
    ignore_memory: IgnoreMemory = False,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            "-m",
            help="also run each model; on a CPU, a step of XL/2 takes 15 GiB and minutes",
            rich_help_panel=MEASURING,
        ),
    ] = False,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="first compile the blocks of FiT and FiTv2, as training.compile does (about a minute)",
            rich_help_panel=MEASURING,
        ),
    ] = False,
    repeats: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"runs, whose median is reported; default {DEFAULT_REPEATS}", rich_help_panel=MEASURING
        ),
    ] = None,
    autoencoder: Annotated[
        str | None,
        typer.Option(help="folder or hub id; default: the model's own (presets: 8 pixels per latent pixel)"),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="also draw the figures into this PNG file")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the file of --plot if it is there")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON report instead of tables")] = False,
) -> None:
    """Show what models cost: parameters, FLOPs and memory by formula; time and fraction of the peak by measuring.

    [bold]Examples[/bold]

      fitv2 profile

      fitv2 profile FiTv2-B/2 FiTv2-XL/2 --size 256x256 --size 160x480 --batch 8

      fitv2 profile FiTv2-B/2 builtin:fashion --measure --plot cost.png

      fitv2 profile FiTv2-B/2 DiT-B/2 --measure --compile --batch 8

      fitv2 profile runs/mine --measure --precision fp32 --json

    GMAC counts the multiply-accumulates of linear layers (the "GFLOPs" of the paper's Table I). GFLOP counts two
    for each of them, and adds the products of attention. Formulas need no memory: ask for any size of any model.
    """
    import torch

    from ..device import choose_device, choose_precision
    from ..profiling.profile import TABLE_1, Case, Profile, cost_of
    from ..profiling.profile import measure as measured
    from .progress import image_progress
    from .tables import show_profiles

    measuring = {"--repeats": repeats, "--compile": compiled, "--device": device, "--ignore-memory": ignore_memory}
    for option, given in measuring.items():
        if given and not measure:
            raise UserError(f"{option} has no effect without --measure; add it or leave out {option}")
    repeats = repeats or DEFAULT_REPEATS
    if plot is not None and plot.is_dir():
        raise UserError(f"--plot {plot} is a folder; name a PNG file")
    if plot is not None and plot.exists() and not overwrite:
        raise UserError(f"--plot {plot} is there already; name another file, or add --overwrite to replace it")
    where = choose_device(device)
    precision = choose_precision(precision, where)
    sizes = [parse_size(text) for text in size or []]
    subjects = [find_subject(name, autoencoder) for name in models or TABLE_1]
    cases = [Case(subject, s, batch, precision) for subject in subjects for s in sizes or [subject.size]]
    profiles = [Profile(case, cost_of(case)) for case in cases]
    if measure:
        with_step = [ignore_memory or fits(p, where) for p in profiles]
        with image_progress("measuring", sum(2 + step for step in with_step) * (repeats + 1)) as done:
            profiles = [
                replace(p, measured=measured(p.case, p.cost.forward_flops, where, repeats, done, step, compiled))
                for p, step in zip(profiles, with_step, strict=True)
            ]
    if plot is not None:
        from ..drawing import write_page
        from ..profiling.plots import panels

        write_page(plot, panels(profiles))
    if as_json:
        about = {
            "precision": precision,
            "compiled": compiled,
            "device": where.type,
            "threads": torch.get_num_threads(),
        }
        print(json.dumps(about | {"profiles": [p.report() for p in profiles], "plot": plot and str(plot)}))
        return
    show_profiles(profiles, where.type, torch.get_num_threads(), compiled)
    if plot is not None:
        print(f"Drawn in {plot}")


def find_subject(name: str, autoencoder: str | None) -> Subject:
    """Returns a preset or a model on disk. Raises UserError if there is none of that name."""
    from ..autoencoder import read_factor
    from ..checkpoints.model_folder import BUILTIN
    from ..model.presets import PRESETS
    from ..profiling.profile import Subject

    if name in PRESETS:
        return Subject(name, PRESETS[name], read_factor(autoencoder) if autoencoder else FACTOR, DEFAULT_SIZE)
    if not name.startswith(BUILTIN) and not Path(name).exists():
        raise UserError(
            f"there is no preset and no folder {name!r}; the presets are {', '.join(PRESETS)}, and builtin:fashion "
            "ships with the package"
        )
    return read_subject(name, autoencoder)


def read_subject(name: str, autoencoder: str | None) -> Subject:
    """A model on disk, with the most frequent size of its training."""
    import torch

    from ..autoencoder import read_factor
    from ..checkpoints.model_folder import is_own_model, load_pretrained
    from ..model.config import FiTConfig
    from ..profiling.profile import Subject

    pretrained = load_pretrained(name, None) if is_own_model(name) else load_any(name, torch.bfloat16)
    config, autoencoder = pretrained.model.config, autoencoder or pretrained.autoencoder
    if isinstance(config, FiTConfig) and config.context != "none":
        raise UserError(f"{name} takes a context of any length, and no formula here knows what that costs")
    if autoencoder is None:
        check_pixels(name, config.in_channels)
    factor, counts = read_factor(autoencoder), Counter()
    for of_class in pretrained.shapes:
        for height, width, count in of_class:
            counts[height * factor, width * factor] += count
    return Subject(name, config, factor, counts.most_common(1)[0][0])


def fits(profile: Profile, device: torch.device) -> bool:
    """Whether a training step fits into the free memory. Raises UserError if not even a forward pass does."""
    from .memory import free_bytes

    cost, free = profile.cost, free_bytes(device)
    # Random weights are drawn in float32, before they become bfloat16.
    needed = 4 * cost.parameters + cost.forward_bytes
    if needed > free:
        raise UserError(
            f"a forward of {profile.case.subject.name} would need about {needed / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free: leave out --measure, name a smaller model, --size or --batch, or add "
            "--ignore-memory"
        )
    return cost.training_bytes <= free

"""`fitv2 train`: from a recipe to a model folder, resumable at any moment."""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from ..messages import command
from .options import Device, IgnoreMemory, refuse_options

if TYPE_CHECKING:
    from ..settings.recipe import Recipe
    from ..training.trainer import Trainer

plan_option = partial(typer.Option, rich_help_panel="With --dry-run")


def train(
    context: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            help="a name from 'fitv2 recipes', or a YAML file; default: images or latents, by what --data holds",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", help="a folder of images (one sub-folder per class, or none) or latents"),
    ] = None,
    init_from: Annotated[str | None, typer.Option(help="a model to start from (folder, run or builtin:NAME)")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="change a setting, repeatable: section.key=value; --dry-run lists them"),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="the run's folder; default: runs/RECIPE")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in that folder, or begin it")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show settings, cost and time")] = False,
    devices: Annotated[int, plan_option(min=1, help="number of devices that would share the work")] = 1,
    peak_tflops: Annotated[
        float | None,
        plan_option(min=0.001, help="peak of a device (A100: 312); default: measured"),
    ] = None,
    utilisation: Annotated[
        float, plan_option(min=0.01, max=1, help="fraction of --peak-tflops that training reaches")
    ] = 0.4,
    as_json: Annotated[bool, plan_option("--json", help="print JSON instead of text")] = False,
    device: Device = None,
    ignore_memory: IgnoreMemory = False,
) -> None:
    """Train a model on images of all shapes, without padding.

    [bold]Examples[/bold]

      fitv2 train --recipe fashion-tiny
      fitv2 train --data my/images --out runs/mine
      fitv2 train --data my/images --init-from runs/theirs --out runs/tuned
      fitv2 train --resume --out runs/mine
      fitv2 train --recipe fashion --set training.steps=2000 --set model.width=192 --dry-run

    [bold]How long is long enough?[/bold] --dry-run estimates the time on this machine. On two CPU cores, fashion-tiny
    makes recognisable images after its 3,000 steps (10 minutes), and fashion is good after 8,000 (1.7 hours).
    The recipe 'images' needs all of its 4,000 steps to show shapes, and more steps for more images. 'latents' is meant
    for 50,000 steps on a GPU, the ImageNet recipes for 400,000 and more. Stop when the sheets in samples/ no longer
    improve, or when the loss on held-out images (training.holdout) rises: 'fitv2 plot' draws it.

    For the baselines use --set model.architecture=FiT, DiT or SiT. DiT and SiT take only squares of one size:
    --set data.preprocessing=crop.

    The run's folder holds log.jsonl, inputs.png (what the model sees), samples/, checkpoints/, and model/ for
    'fitv2 sample'. Ctrl-C and SIGTERM ('kill PID', for a run in the background) save the current step. --resume
    continues with the run's own settings, except those that --set changes, and refuses another recipe; on a CPU the
    result equals an uninterrupted run bit for bit.
    """
    from .progress import stopped_before_the_first_step
    from .recipes import check_source, choose_recipe

    if dry_run:
        refuse_options(context, {"ignore_memory"}, "with --dry-run")
    else:
        refuse_options(context, {"devices", "peak_tflops", "utilisation", "as_json"}, "without --dry-run")
    if peak_tflops is None:
        refuse_options(context, {"utilisation"}, "without --peak-tflops")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if out is None and recipe is None and data is None and init_from is None:
        raise UserError("name what to train on with --recipe or --data, or continue a run with --resume --out RUN")
    run = out or Path("runs") / Path(recipe or "images").stem
    chosen, name = choose_recipe(recipe, data, init_from, run, resume, settings or [])
    check_source(chosen, run, resume, dry_run)
    if dry_run:
        from .plan import show_plan

        show_plan(chosen, run, resume, device, devices, peak_tflops, utilisation, as_json)
        return
    with stopped_before_the_first_step(speaks()):
        trainer = carry_out(chosen, name, run, resume, device, ignore_memory)
    if speaks():
        report_end(trainer, run)
    if trainer.progress.stopped_by is not None:
        raise typer.Exit(128 + trainer.progress.stopped_by)


def carry_out(
    chosen: Recipe, name: str | None, run: Path, resume: bool, device: str | None, ignore_memory: bool
) -> Trainer:
    """Trains, alone in the run's folder; returns the trainer when it has ended.

    name: of the recipe, for a run that begins.
    """
    from ..build import build_base, build_dataset, build_model_config, with_precision
    from ..checkpoints.training_state import newest_state
    from ..distributed import ranks as processes
    from ..model.config import FiTConfig
    from ..training.run_folder import check_run, keep_name, kept_rope
    from ..training.sheets import data_lines, write_inputs
    from ..training.trainer import Trainer
    from .plan import distance_of, too_large
    from .progress import training_progress

    # A first scan of a million images takes longer than processes usually wait for each other.
    ranks = processes.join_processes(device, timedelta(hours=6))
    processes.check_launcher(ranks.device)
    chosen = processes.on_rank0(partial(with_precision, chosen, ranks.device))
    processes.on_rank0(lambda: check_run(run, chosen, resume))
    # Before the data is scanned; on the other ranks it only says that there is something to wait for.
    distance = processes.only_on_rank0(lambda: distance_of(chosen, ranks.device))
    if chosen.log.distance_every is not None and not ranks.is_main_process:
        distance = nothing_measured
    with processes.locked_on_rank0(run, "a training"):
        wanted = chosen.model.patch_size, run / "images.json", chosen.model.encoder is not None
        dataset = processes.rank0_first(lambda: build_dataset(chosen.data, *wanted))
        begun = processes.on_rank0(lambda: newest_state(run / "checkpoints"))
        base = None if begun else build_base(chosen.training)
        config = build_model_config(chosen, dataset, base)
        if begun and isinstance(config, FiTConfig):  # The model that it started from may be gone.
            rope = processes.on_rank0(lambda: kept_rope(run, begun[1]))
            config = config if rope is None else replace(config, rope=rope)
        if not ignore_memory and (lack := too_large(chosen, config, ranks.device, ranks.num_processes)):
            raise UserError(f"{lack}. This is an estimate: --ignore-memory trains all the same")
        trainer = Trainer(chosen, dataset, config, run, base, ranks, distance)
        del base  # A large model takes gigabytes.
        if speaks():
            report = getattr(dataset, "report", None)
            if report is not None:  # What a folder's scan found and skipped; the scan itself has logged it.
                report.write(run / "skipped.json")
            logging.info("%s", "\n".join(data_lines(dataset, chosen.training)))
            if not begun or not (run / "inputs.png").is_file():
                write_inputs(run / "inputs.png", dataset, chosen.training.seed)
            if name is not None:
                keep_name(run, name)
        with training_progress(chosen.training.steps) if speaks() else nullcontext(lambda figures: None) as progress:
            trainer.fit(progress)
        processes.destroy_process_group()
    return trainer


def nothing_measured(model: Path) -> dict[str, float]:
    """Stands for the distance on ranks that do not measure it."""
    return {}


def speaks() -> bool:
    """Under torchrun, one process of several speaks and writes."""
    return os.environ.get("RANK", "0") == "0"


def report_end(trainer: Trainer, run: Path) -> None:
    """Says what was reached, and how to continue."""
    from ..training.advice import advice
    from ..training.log import LOG, read_log
    from .progress import said_at_end

    how = "the same command with --resume continues"
    how += f", or: {trainer.progress.resume_command}" if "WORLD_SIZE" not in os.environ else ""
    told, finished = said_at_end(trainer.progress, trainer.begun, how)
    print(told)
    if not finished:
        return
    if told := advice(read_log(run / LOG), run):
        print(told)
    sheets = f"Samples in {run}/samples; now" if (run / "samples").is_dir() else "Now"
    print(f"{sheets} try: {command('sample', run)}")

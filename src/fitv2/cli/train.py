"""`fitv2 train`: from a recipe to a model folder, resumable at any moment."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from ..messages import command, counted
from .given import refuse_without_effect
from .sampling import Device

if TYPE_CHECKING:
    from ..config import Recipe
    from ..data.dataset import Dataset
    from ..training.trainer import Trainer


def train(
    context: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="fashion, fashion-tiny, fashion-study, pictures, latents, imagenet-b, -xl, -3b, -hr-xl, -hr-3b, or a "
            "YAML file; a resumed run has its own"
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="a folder of images, with a sub-folder per class or none; short for data.source")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value, repeatable; --dry-run lists every key")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="the run's folder; default runs/RECIPE")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="continue the run in that folder, bit for bit on a CPU")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show settings, cost and time; train nothing")] = False,
    devices: Annotated[int, typer.Option(min=1, help="with --dry-run: processes that would share the work")] = 1,
    peak_tflops: Annotated[
        float | None,
        typer.Option(min=0.001, help="with --dry-run: peak of a device, such as 312 for an A100 in bf16"),
    ] = None,
    utilisation: Annotated[
        float, typer.Option(min=0.01, max=1, help="with --peak-tflops: the fraction of the peak that training reaches")
    ] = 0.4,
    device: Device = None,
    ignore_memory: Annotated[
        bool, typer.Option("--ignore-memory", help="train even if the estimate exceeds the free memory")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="with --dry-run: print JSON")] = False,
) -> None:
    """Train a model on images of all shapes, without padding.

    The recipe 'pictures' uses whole images. The ImageNet recipes and 'fitv2 prepare' may also use square crops.

    [bold]Examples[/bold]

      fitv2 train --recipe fashion-tiny

      fitv2 train --recipe pictures --data my/pictures --out runs/mine

      fitv2 train --resume --out runs/mine

      fitv2 train --recipe fashion --set training.steps=2000 --set model.width=192 --dry-run

    [bold]How long is long enough?[/bold] --dry-run estimates the time on this machine. Measured on two CPU cores:
    fashion-tiny makes recognisable garments after its 3 000 steps (10 minutes), and fashion is good after 8 000 (1.7
    hours). On 800 images of 16 classes, the patches made by 'pictures' match their neighbours after 1 000 steps (16
    minutes), and shapes need all 4 000. More images need more steps, preferably on a GPU. latents is meant for 50 000
    steps on a GPU, the ImageNet recipes for 400 000 and more. Stop when the sheets in samples/ no longer improve.

    FiT, DiT and SiT, with which FiTv2 is compared, are trained with --set model.architecture=FiT and so on. DiT and SiT
    take squares of one size: --set data.preprocessing=crop.

    The run's folder holds log.jsonl, inputs.png (what the model sees), samples/, checkpoints/, and model/ for
    'fitv2 sample --model'. Ctrl-C and SIGTERM save the current step and end with exit code 130 and 143. --resume
    continues with the run's own settings, except those that --set gives now.
    """
    from ..training.sigterm import NAMES, signal_of, sigterm_interrupts

    of_trainings, of_plans = {"ignore_memory"}, {"devices", "peak_tflops", "utilisation", "as_json"}
    every = {parameter.name for parameter in context.command.params}
    refuse_without_effect(
        context, every - (of_trainings if dry_run else of_plans), f"with{'' if dry_run else 'out'} --dry-run"
    )
    if peak_tflops is None:
        refuse_without_effect(context, every - {"utilisation"}, "without --peak-tflops")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run = folder_of(recipe, out)
    chosen = choose_recipe(recipe, run, resume, [*data_override(data), *(settings or [])])
    check_source(chosen, recipe, run, resume, dry_run)
    if dry_run:
        from .plan import show_plan

        show_plan(chosen, run, resume, device, devices, peak_tflops, utilisation, as_json)
        return
    try:
        with sigterm_interrupts():
            trainer = carry_out(chosen, run, resume, device, ignore_memory)
    except KeyboardInterrupt as interruption:
        number = signal_of(interruption)
        if speaks():
            say(f"stopped by {NAMES[number]} before the first step: nothing is lost, and the same command starts again")
        raise typer.Exit(128 + number) from None
    if speaks():
        report_end(trainer, run)
    if trainer.stopped_by is not None:
        raise typer.Exit(128 + trainer.stopped_by)


def carry_out(chosen: Recipe, run: Path, resume: bool, device: str | None, ignore_memory: bool) -> Trainer:
    """The whole training, alone in the run's folder; returns what it has come to."""
    from ..build import build_base, build_dataset, build_model_config
    from ..device import join_processes
    from ..checkpoints.model_folder import read_config
    from ..distributed.ranks import check_launcher, on_rank0, leave, locked_on_rank0
    from ..training.checkpoint import checkpoints
    from ..training.inputs import data_lines, write_inputs
    from ..training.run_folder import check_run
    from ..training.trainer import Trainer
    from .plan import check_memory
    from .progress import training_progress

    # A first scan of a million images takes longer than processes usually wait for each other.
    state = join_processes(device, timedelta(hours=6))
    check_launcher()
    on_rank0(lambda: check_run(run, chosen, resume))
    with locked_on_rank0(run, "a training"):
        dataset = in_turn(lambda: build_dataset(chosen.data, chosen.model.patch_size, run / "pictures.json"))
        begun = on_rank0(lambda: bool(checkpoints(run / "checkpoints")))
        base = None if begun else build_base(chosen.training)
        config = build_model_config(chosen, dataset, base)
        if begun and config.fixed_grid is None:  # The model that it began with may be gone.
            config = replace(config, rope=read_config(run / "model/config.json")[1].rope)
        if not ignore_memory:
            check_memory(chosen, config, state.device, state.num_processes)
        trainer = Trainer(chosen, dataset, config, run, base)
        del base  # Gigabytes, of a large model.
        if speaks():
            report_data(dataset, run / "skipped.json")
            logging.info("%s", "\n".join(data_lines(dataset)))
            if not begun or not (run / "inputs.png").is_file():
                write_inputs(run / "inputs.png", dataset, chosen.training.seed)
        with training_progress(chosen.training.steps) if speaks() else nullcontext(lambda figures: None) as report:
            trainer.fit(report)
        leave()
    return trainer


def speaks() -> bool:
    """Under torchrun, one process of several speaks and writes."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Prints, also the names of folders that are not UTF-8."""
    print(text.encode(errors="backslashreplace").decode())


def report_end(trainer: Trainer, run: Path) -> None:
    """What was reached, and how to go on."""
    from ..training.sigterm import NAMES
    from ..training.run_folder import resume_command

    if trainer.stopped_by is not None:
        how = "the same command with --resume continues"
        how += f", or: {resume_command(run)}" if "WORLD_SIZE" not in os.environ else ""
        say(f"stopped by {NAMES[trainer.stopped_by]} at step {trainer.done}, which is saved; {how}")
        return
    if trainer.begun is not None and trainer.begun[1]["step"] == trainer.done:
        say(f"nothing to do: all {counted(trainer.done, 'step')} are trained; --set training.steps=... raises them")
        return
    unread = trainer.images_read.skipped
    lost = f", {counted(unread, 'image')} could not be read" if unread else ""
    minutes, skipped = f"{trainer.seconds / 60:.1f} min", trainer.gradients.skipped
    say(f"trained {counted(trainer.done, 'step')} in {minutes}; {skipped} skipped as not finite{lost}.")
    say(f"Samples in {run}/samples; now try: {command('sample', '--model', run)}")


def folder_of(recipe: str | None, out: Path | None) -> Path:
    if out is None and recipe is None:
        raise UserError("name what to train on with --recipe, or continue a run with --resume --out RUN")
    return out or Path("runs") / Path(recipe).stem


def choose_recipe(name: str | None, run: Path, resume: bool, overrides: list[str]) -> Recipe:
    """The recipe of that name, or of the run that is resumed, with the overrides on top."""
    from ..config import load_recipe
    from ..training.run_folder import resumed_recipe

    kept = resumed_recipe(run, overrides) if resume else None
    if name is None and kept is None:
        raise UserError(f"there is no run in {run} to continue; to begin one there, give --recipe")
    if kept is None:
        return load_recipe(name, overrides)
    if name is not None:
        warn_of_others(name, load_recipe(name), kept, {override.partition("=")[0].strip() for override in overrides})
    return kept


def warn_of_others(name: str, recipe: Recipe, kept: Recipe, given: Collection[str]) -> None:
    """Says which settings of a recipe have no effect, because the run that is resumed has its own; `given` ones do."""
    for section, settings in recipe:
        for key in sorted(settings.model_fields_set):
            here, there = getattr(getattr(kept, section), key), getattr(settings, key)
            if here != there and f"{section}.{key}" not in {"data.source", *given}:
                logging.warning(
                    "%s.%s stays %s, as the run began, and is not %s, as in %s: --set changes it",
                    *(section, key, here, there, name),
                )


def check_source(chosen: Recipe, name: str | None, run: Path, resume: bool, dry_run: bool) -> None:
    """Raises UserError where the data is not there, and it is plain what to give."""
    from ..config import load_recipe, recipe_names
    from ..training.run_folder import resume_command

    source = chosen.data.source
    if source == "fashion" or Path(source).exists() or (dry_run and chosen.data.stand_in):
        return
    if resume and (run / "recipe.json").is_file():
        raise UserError(f"{source} is not there any more; if it is elsewhere now: {resume_command(run)} --data FOLDER")
    if name in recipe_names() and source == load_recipe(name).data.source:
        raise UserError(f"the recipe {name} trains on images of your own: give their folder with --data")


def data_override(data: str | None) -> list[str]:
    """--data as a setting; always a path, so that a folder called fashion is not taken for the built-in set."""
    if data is None:
        return []
    path = data if os.path.isabs(data) else os.path.join(".", data)
    return [f"data.source={quoted(path)}"]


def quoted(path: str) -> str:
    """A string of YAML for a path; what YAML does not take as it is, such as bytes that are not UTF-8, is escaped."""
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in json.dumps(path, ensure_ascii=False))


def in_turn(build: Callable[[], Dataset]) -> Dataset:
    """What the first of several processes has built before the others do: one scans, the others read what it found."""
    from ..distributed.ranks import on_rank0

    built: list[Dataset] = []
    on_rank0(lambda: built.append(build()))
    return built[0] if built else build()


def report_data(dataset: Dataset, path: Path) -> None:
    """What a folder's scan found and skipped, as a file; the scan itself has logged it."""
    report = getattr(dataset, "report", None)
    if report is not None:
        report.write(path)

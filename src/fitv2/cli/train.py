"""`fitv2 train`: from a recipe to a model folder, resumable at any moment."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from .sampling import Device

if TYPE_CHECKING:
    from ..data.dataset import Dataset
    from ..training.trainer import Trainer


def train(
    recipe: Annotated[
        str,
        typer.Option(
            help="fashion, fashion-tiny, fashion-study, pictures, latents, imagenet-b, -xl, -3b, -hr-xl, -hr-3b, or a "
            "YAML file"
        ),
    ],
    data: Annotated[
        str | None, typer.Option(help="a folder of pictures, a sub-folder per class or none; short for data.source")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value, repeatable; --dry-run lists every key")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="the run's folder; default runs/RECIPE")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in that folder, bit for bit")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show configuration and cost, train nothing")] = False,
    devices: Annotated[int, typer.Option(min=1, help="with --dry-run: how many processes would share the work")] = 1,
    peak_tflops: Annotated[
        float | None, typer.Option(min=0.001, help="with --dry-run: a device's peak, such as 312 for an A100 in bf16")
    ] = None,
    utilisation: Annotated[
        float, typer.Option(min=0.01, max=1, help="with --peak-tflops: the share of the peak that is reached")
    ] = 0.4,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="with --dry-run: print JSON")] = False,
) -> None:
    """Train a model on images of all shapes, without padding.

    The recipe pictures keeps every image whole. The ImageNet recipes and 'fitv2 prepare' may also use square crops.

    [bold]Examples[/bold]

      fitv2 train --recipe fashion-tiny

      fitv2 train --recipe pictures --data my/pictures --out runs/mine

      fitv2 train --recipe pictures --data my/pictures --out runs/mine --resume

      fitv2 train --recipe fashion --set training.steps=2000 --set model.width=192 --dry-run

    FiT, DiT and SiT, with which FiTv2 compares, are trained by --set model.architecture=FiT and so on; DiT and SiT take
    squares of one size (--set data.preprocessing=crop).

    The run's folder holds log.jsonl, samples/, checkpoints/ and model/, which 'fitv2 sample --model' takes.
    SIGTERM saves the step under way and ends with exit code 143; the same command with --resume continues.
    """
    from ..build import build_base, build_dataset, build_model_config
    from ..config import load_recipe
    from ..device import join_processes
    from ..pretrained import read_config
    from ..training.run import check_run

    if not dry_run and (as_json or devices > 1 or peak_tflops is not None):
        raise UserError(
            "--json, --devices and --peak-tflops go with --dry-run; the figures of a training are in its log.jsonl"
        )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    chosen = load_recipe(recipe, [*data_override(data), *(settings or [])])
    run = out or Path("runs") / Path(recipe).stem
    # Under torchrun, one process of several speaks and writes.
    speaks = os.environ.get("RANK", "0") == "0"
    if dry_run:
        from .plan import show_plan

        show_plan(chosen, devices, peak_tflops, utilisation, as_json)
        return
    if speaks:
        check_run(run, chosen, resume)
    # A first scan of a million pictures takes longer than processes usually wait for each other.
    state = join_processes(device, timedelta(hours=6))
    dataset = in_turn(lambda: build_dataset(chosen.data, chosen.model.patch_size, run / "pictures.json"))
    if speaks:
        report_data(dataset, run / "skipped.json")
    begun = has_checkpoint(run)
    base = None if begun else build_base(chosen.training)
    config = build_model_config(chosen, dataset, base)
    if begun and config.fixed_grid is None:  # The model that it began with may be gone.
        config = replace(config, rope=read_config(run / "model/config.json")[1].rope)

    from ..processes import leave
    from ..training.preemption import STOPPED
    from ..training.trainer import Trainer
    from .plan import check_memory
    from .progress import training_progress

    check_memory(chosen, config, state.device, int(os.environ.get("WORLD_SIZE", "1")))
    trainer = Trainer(chosen, dataset, config, run, base)
    del base  # Gigabytes, of a large model.
    try:
        with training_progress(chosen.training.steps) if speaks else nullcontext(lambda figures: None) as report:
            trainer.fit(report)
    except KeyboardInterrupt:
        if speaks:
            every = f"one every {chosen.log.checkpoint_every} steps"
            print(f"interrupted at step {trainer.done}; --resume continues from the last checkpoint ({every})")
        raise
    leave()
    if speaks:
        report_end(trainer, run)
    if trainer.stopping:
        raise typer.Exit(STOPPED)


def report_end(trainer: Trainer, run: Path) -> None:
    """What was reached, and how to go on."""
    if trainer.stopping:
        print(f"stopped by SIGTERM at step {trainer.done}, which is saved; the same command with --resume continues.")
        return
    print(f"trained {trainer.done} steps in {trainer.seconds / 60:.1f} min; {trainer.skipped} skipped as not finite.")
    print(f"Samples in {run}/samples; now try: fitv2 sample --model {run}")


def data_override(data: str | None) -> list[str]:
    """--data as a setting; always a path, so that a folder called fashion is not taken for the built-in set."""
    if data is None:
        return []
    path = data if os.path.isabs(data) else os.path.join(".", data)
    return [f"data.source={json.dumps(path, ensure_ascii=False)}"]


def in_turn(build: Callable[[], Dataset]) -> Dataset:
    """What the first of several processes has built before the others do: one scans, the others read what it found."""
    from ..processes import first_says

    built: list[Dataset] = []
    first_says(lambda: built.append(build()))
    return built[0] if built else build()


def has_checkpoint(run: Path) -> bool:
    from ..training.checkpoint import checkpoints

    return bool(checkpoints(run / "checkpoints"))


def report_data(dataset: Dataset, path: Path) -> None:
    """What a folder's scan found and skipped, as a file; the scan itself has logged it."""
    report = getattr(dataset, "report", None)
    if report is not None:
        report.write(path)

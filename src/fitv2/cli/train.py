"""`fitv2 train`: from a recipe to a model folder, resumable at any moment."""

from __future__ import annotations

import json
import logging
import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..config import Recipe
    from ..data.dataset import Dataset
    from ..model.transformer import FiTConfig
    from ..training.trainer import Trainer


def train(
    recipe: Annotated[str, typer.Option(help="fashion, fashion-tiny, pictures, or a YAML file")],
    data: Annotated[
        str | None, typer.Option(help="a folder of pictures, a sub-folder per class or none; short for data.source")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value, repeatable; --dry-run lists every key")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="the run's folder; default runs/RECIPE")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in that folder, bit for bit")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show configuration and cost, train nothing")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="with --dry-run: print JSON")] = False,
) -> None:
    """Train a model on pictures of all shapes, none of them cropped to a square or padded.

    [bold]Examples[/bold]

      fitv2 train --recipe fashion-tiny

      fitv2 train --recipe pictures --data my/pictures --out runs/mine

      fitv2 train --recipe pictures --data my/pictures --out runs/mine --resume

      fitv2 train --recipe fashion --set training.steps=2000 --set model.width=192 --dry-run

    The run's folder holds log.jsonl, samples/, checkpoints/ and model/, which 'fitv2 sample --model' takes.
    SIGTERM saves the step under way and ends with exit code 143; the same command with --resume continues.
    """
    from ..build import build_dataset, build_model_config
    from ..config import load_recipe
    from ..pretrained import default_device
    from ..training.run import check_run

    if as_json and not dry_run:
        raise ValueError("--json goes with --dry-run; the figures of a training are in its log.jsonl")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    chosen = load_recipe(recipe, [*data_override(data), *(settings or [])])
    run = out or Path("runs") / Path(recipe).stem
    # Under torchrun, one process of several speaks and writes.
    speaks = os.environ.get("RANK", "0") == "0"
    if dry_run:
        dataset = build_dataset(chosen.data, chosen.model.patch_size)
        show_plan(chosen, dataset, build_model_config(chosen, dataset), as_json)
        return
    if speaks:
        check_run(run, chosen, resume)
    # One process scans the pictures; the others then read what it found.
    with first_process_first():
        dataset = build_dataset(chosen.data, chosen.model.patch_size, run / "pictures.json")
    if speaks:
        report_data(dataset, run / "skipped.json")
    config = build_model_config(chosen, dataset)

    from ..training.preemption import STOPPED
    from ..training.processes import leave
    from ..training.trainer import Trainer
    from .progress import training_progress

    check_memory(chosen, config, default_device())
    trainer = Trainer(chosen, dataset, config, run)
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


def first_process_first():
    """A context that the first of several processes leaves before the others enter."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available()).main_process_first()


def report_data(dataset: Dataset, path: Path) -> None:
    """What a folder's scan found and skipped, as a file; the scan itself has logged it."""
    report = getattr(dataset, "report", None)
    if report is not None:
        report.write(path)


def plan_figures(recipe: Recipe, dataset: Dataset, config: FiTConfig) -> dict[str, Any]:
    """Cost of a run: parameters, operations of a step, memory, packing."""
    from ..data.packing import plan_packs, real_share
    from ..model.cost import forward_flops, parameters, training_bytes

    settings = recipe.training
    lengths = dataset.epoch(0, settings.seed).hw.prod(1)
    packs = plan_packs(lengths, settings.tokens_per_pack, settings.seed, 0)
    # A backward pass costs two forward passes; activation checkpointing repeats the forward pass in it.
    forwards = 4 if settings.activation_checkpointing else 3
    step = forwards * forward_flops(config, lengths[packs[0]].tolist()) * settings.packs_per_step
    memory = training_bytes(config, settings.tokens_per_pack, settings.activation_checkpointing, settings.precision)
    return {
        "parameters": parameters(config),
        "pictures": len(dataset),
        "classes": dataset.num_classes,
        "tokens_per_picture": float(lengths.mean()),
        "packs_per_epoch": len(packs),
        "real_token_share": real_share(lengths, packs, settings.tokens_per_pack),
        "epochs": settings.steps * settings.packs_per_step / len(packs),
        "flops_per_step": step,
        "flops_total": step * settings.steps,
        "memory_bytes": memory,
    }


def show_plan(recipe: Recipe, dataset: Dataset, config: FiTConfig, as_json: bool) -> None:
    import yaml

    figures = plan_figures(recipe, dataset, config)
    if as_json:
        print(json.dumps({"recipe": recipe.model_dump(mode="json"), **figures}))
        return
    print(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    print(f"parameters        {figures['parameters'] / 1e6:.2f} M")
    print(f"pictures          {figures['pictures']} in {figures['classes']} classes")
    print(f"tokens a picture  {figures['tokens_per_picture']:.1f}")
    print(f"real tokens       {100 * figures['real_token_share']:.2f} % of the budget")
    print(f"epochs            {figures['epochs']:.1f} of {figures['packs_per_epoch']} packs")
    print(f"operations        {figures['flops_per_step'] / 1e9:.1f} GFLOP a step")
    print(f"                  {figures['flops_total'] / 1e15:.3f} PFLOP in all")
    print(f"memory            about {figures['memory_bytes'] / 2**30:.2f} GiB a process")


def check_memory(recipe: Recipe, config: FiTConfig, device: str) -> None:
    """Raises ValueError when a step would not fit into the memory that is free now."""
    import torch

    from ..model.cost import training_bytes
    from .memory import free_bytes

    settings = recipe.training
    shards = int(os.environ.get("WORLD_SIZE", "1")) if settings.sharding == "fsdp" else 1
    needed = training_bytes(
        config, settings.tokens_per_pack, settings.activation_checkpointing, settings.precision, shards
    )
    free = free_bytes(torch.device(device))
    if needed > free:
        raise ValueError(
            f"a step over {settings.tokens_per_pack} tokens would need about {needed / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free; lower training.tokens_per_pack (and raise training.packs_per_step to "
            "keep the batch), or set training.activation_checkpointing=true"
        )

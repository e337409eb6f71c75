"""`fitv2 train`: from a recipe to a model folder, resumable at any moment."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..config import Recipe
    from ..data.dataset import Dataset
    from ..model.transformer import FiTConfig


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
    """
    from ..build import build_dataset, build_model_config
    from ..config import load_recipe

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    overrides = [*([f"data.source={json.dumps(data, ensure_ascii=False)}"] if data else []), *(settings or [])]
    chosen = load_recipe(recipe, overrides)
    run = out or Path("runs") / Path(recipe).stem
    # Under torchrun, one process of several speaks and writes.
    speaks = os.environ.get("RANK", "0") == "0"
    if speaks and not dry_run:
        check_run(run, chosen, resume)
    cache = run / "pictures.json"
    dataset = build_dataset(chosen.data, chosen.model.patch_size, None if dry_run else cache)
    report_data(dataset, None if dry_run else run / "skipped.json")
    config = build_model_config(chosen, dataset)
    if dry_run:
        show_plan(chosen, dataset, config, as_json)
        return
    check_memory(chosen, config)
    if speaks:
        keep_recipe(run, chosen)

    from ..training.trainer import Trainer
    from .progress import training_progress

    trainer = Trainer(chosen, dataset, config, run)
    with training_progress(chosen.training.steps) as report:
        trainer.fit(report)
    if not speaks:
        return
    print(f"trained {trainer.done} steps in {trainer.seconds / 60:.1f} min; {trainer.skipped} skipped as not finite.")
    print(f"Samples in {run}/samples; now try: fitv2 sample --model {run}")


def check_run(run: Path, recipe: Recipe, resume: bool) -> None:
    """Raises ValueError where continuing would mix two runs."""
    kept = run / "recipe.json"
    if not kept.is_file():
        return
    if not resume:
        raise ValueError(f"{run} already holds a run; add --resume to continue it, or choose another --out")
    before, now = json.loads(kept.read_text()), recipe.model_dump(mode="json")
    changed = [section for section in ("model", "data") if before[section] != now[section]]
    if changed:
        raise ValueError(f"{run} was trained with another {' and '.join(changed)} section; see {kept}")


def keep_recipe(run: Path, recipe: Recipe) -> None:
    """The settings as run / recipe.json, whole at any moment."""
    run.mkdir(parents=True, exist_ok=True)
    draft = run / ".recipe.json.partial"
    draft.write_text(recipe.model_dump_json(indent=1))
    draft.replace(run / "recipe.json")


def report_data(dataset: Dataset, path: Path | None) -> None:
    """What a folder's scan found and skipped, as a file; the scan itself has logged it."""
    report = getattr(dataset, "report", None)
    if report is not None and path is not None:
        report.write(path)


def plan_figures(recipe: Recipe, dataset: Dataset, config: FiTConfig) -> dict[str, Any]:
    """Cost of a run: parameters, operations of a step, memory, packing."""
    from ..data.packing import plan_packs, real_share
    from ..model.cost import forward_flops, parameters, training_bytes

    settings = recipe.training
    lengths = dataset.epoch(0, settings.seed).hw.prod(1)
    packs = plan_packs(lengths, settings.tokens_per_pack, settings.seed, 0)
    step = 3 * forward_flops(config, lengths[packs[0]].tolist()) * settings.packs_per_step
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


def check_memory(recipe: Recipe, config: FiTConfig) -> None:
    """Raises ValueError when a step would not fit into the memory that is free now."""
    import psutil
    import torch

    from ..model.cost import training_bytes

    settings = recipe.training
    needed = training_bytes(config, settings.tokens_per_pack, settings.activation_checkpointing, settings.precision)
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"a step over {settings.tokens_per_pack} tokens would need about {needed / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free; lower training.tokens_per_pack (and raise training.packs_per_step to "
            "keep the batch), or set training.activation_checkpointing=true"
        )

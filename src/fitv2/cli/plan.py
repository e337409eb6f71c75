"""`fitv2 train --dry-run`: what a training would cost before it starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..messages import counted

if TYPE_CHECKING:
    import torch

    from ..data.dataset import Dataset
    from ..model.config import NetworkConfig
    from ..settings.recipe import Recipe
    from ..training.trainer import Distance


def show_plan(
    recipe: Recipe,
    run: Path,
    resume: bool,
    device: str | None,
    devices: int,
    peak_tflops: float | None,
    utilisation: float,
    as_json: bool,
) -> None:
    """Prints the settings, cost and time of a run on a number of devices.

    The time follows from a short step on this machine, or from a device's peak if that is given. Raises UserError for
    everything that would end such a training before it starts, as far as data and base model are here.
    """
    import yaml

    from ..build import build_dataset, with_precision
    from ..data.packing import check_longest
    from ..data.stand_in import ImageNetLike
    from ..profiling.training_plan import measure_step, plan_figures
    from ..settings.data import FolderSettings
    from ..system.device import choose_device
    from ..training.run_folder import check_run
    from ..training.sheets import data_lines

    check_run(run, recipe, resume)
    if recipe.training.batches_per_step % devices:
        raise UserError(
            f"{recipe.training.batches_per_step} batches a step cannot be shared evenly by {devices} devices: set "
            f"training.batches_per_step to a multiple of {devices}"
        )
    data = recipe.data
    stands_in = isinstance(data, FolderSettings) and data.stand_in is not None and not Path(data.source).exists()
    where = choose_device(device)
    if not stands_in:
        distance_of(recipe, where)  # It raises UserError.
    patch_size, captioned = recipe.model.patch_size, recipe.model.encoder is not None
    dataset = ImageNetLike(data.max_tokens) if stands_in else build_dataset(data, patch_size, captioned=captioned)
    check_longest(dataset.most_tokens, recipe.training.max_tokens_per_batch)
    config, notes = check_ahead(recipe, run, dataset, stands_in)
    if peak_tflops is None:
        recipe = with_precision(recipe, where)
    figures = plan_figures(recipe, dataset, config, devices)
    if peak_tflops is None:
        step = measure_step(recipe, dataset, config, where)
        seconds = step.seconds / step.flops * figures["flops_total"] / devices
        figures |= {"seconds_estimated": seconds, "measured": vars(step)}
        machine = "this machine" if devices == 1 else f"{devices} devices like this one"
        blocks = "" if step.blocks == config.depth else f" through {step.blocks} of {config.depth} blocks"
        time = (
            f"about {duration(seconds)} on {machine}\n"
            f"                  (a step over {step.tokens:,} tokens{blocks} took {step.seconds:.2f} s just now; not "
            "counted: loading images, checkpoints, sheets, and what training.compile saves)"
        )
    else:
        hours = figures["device_hours"] = figures["flops_total"] / (peak_tflops * 1e12 * utilisation) / 3600
        rate = f"{100 * utilisation:.0f} % of {peak_tflops:g} TFLOP/s"
        time = f"{hours:,.0f} device-hours at {rate}: {hours / devices / 24:.1f} days on {devices}"
    if as_json:
        print(json.dumps({"recipe": recipe.model_dump(mode="json"), "stand_in": stands_in, **figures}))
        return
    print(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    if stands_in:
        print(f"{data.source} is not here: planned with sizes like those of ImageNet")
    for note in notes:
        print(note)
    for line in () if stands_in else data_lines(dataset, recipe.training):
        print(line)
    full = 100 * figures["packing_efficiency"]
    lines = {
        "parameters": f"{figures['parameters'] / 1e6:.2f} M, {100 * figures['trained_fraction']:.4g} % trained",
        "images": f"{figures['images']:,} in {counted(figures['classes'], 'class', 'classes')}",
        "tokens an image": f"{figures['tokens_per_image']:.1f}",
        "images a step": f"{figures['images_per_step']:.1f}",
        "batches": f"at most {counted(recipe.training.max_tokens_per_batch, 'token')}, {full:.2f} % full on average",
        "epochs": f"{figures['epochs']:.1f} of {counted(figures['packs_per_epoch'], 'batch', 'batches')}",
        "memory": f"about {figures['memory_bytes'] / 2**30:.2f} GiB" + (" on each device" if devices > 1 else ""),
        "time": time,
    }
    for name, value in lines.items():
        print(f"{name:17} {value}")
    if lack := too_large(recipe, config, where, devices):
        print(f"On this machine now, {lack}")


def check_ahead(recipe: Recipe, run: Path, dataset: Dataset, stands_in: bool) -> tuple[NetworkConfig, list[str]]:
    """Returns the network of a plan and notes about it. Raises UserError as the training would."""
    from ..build import build_base, build_model_config
    from ..checkpoints.training_state import newest_state
    from ..model.network import bare_model
    from ..training.finetune import init_from
    from ..training.run_folder import check_data, facts, identity
    from ..training.trackers import check_packages

    check_packages(recipe.log.trackers)
    begun = newest_state(run / "checkpoints")
    if begun is not None:
        check_data(run, recipe, identity(dataset, facts(dataset, recipe.model.encoder)["examples"]), begun[1])
        return build_model_config(recipe, dataset), []
    start = recipe.training.init_from
    if stands_in and start is not None and not Path(start).exists():
        return build_model_config(recipe, dataset), [f"{start} is not here: planned without the model to begin with"]
    base = build_base(recipe.training, dtype=None)
    config = build_model_config(recipe, dataset, base)
    notes = [] if base is None else init_from(bare_model(config), base, dataset, recipe.training).notes
    return config, [f"{start}: {note}" for note in notes]


def distance_of(chosen: Recipe, device: torch.device) -> Distance | None:
    """Returns what measures the distance to real images during a training; None if the recipe wants none."""
    from ..build import holds_latents
    from ..evaluation.during_training import TrainingDistance

    if chosen.log.distance_every is None:
        return None
    if chosen.log.distance_to is None and holds_latents(chosen.data):
        raise UserError(
            f"log.distance_every needs real images, and {chosen.data.source} holds latents: name the images with "
            "--set log.distance_to=FOLDER"
        )
    return TrainingDistance(chosen.log.distance_to or chosen.data.source, chosen.log.distance_images, device)


def duration(seconds: float) -> str:
    """For people, in two digits: minutes up to an hour and a half, hours up to two days."""
    for unit, length, most in (("minutes", 60, 90), ("hours", 3600, 48)):
        if seconds / length < most:
            return f"{max(seconds / length, 0.1):.2g} {unit}"
    return f"{seconds / 86400:,.0f} days"


def too_large(recipe: Recipe, config: NetworkConfig, device: torch.device, devices: int) -> str | None:
    """What to do if a step would not fit into the memory that is free now; None if it would."""
    from ..profiling.training_plan import needed_bytes
    from ..system.device import lack_of_memory

    what = f"a step over {recipe.training.max_tokens_per_batch} tokens"
    lack = lack_of_memory(what, needed_bytes(recipe, config, devices), device)
    return lack and (
        f"{lack}; lower training.max_tokens_per_batch (and raise training.batches_per_step to keep the batch), or set "
        "training.activation_checkpointing=true"
    )

"""What a training would cost, before it starts: parameters, operations, memory, packing, device-hours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..messages import counted

if TYPE_CHECKING:
    from ..config import Recipe
    from ..data.dataset import Dataset
    from ..model.config import FiTConfig


def show_plan(recipe: Recipe, devices: int, peak_tflops: float | None, utilisation: float, as_json: bool) -> None:
    """Prints settings and cost of a run on so many devices; with a device's peak also the device-hours."""
    import yaml

    from ..build import build_model_config
    from ..training.plan import plan_figures

    if recipe.training.packs_per_step % devices:
        raise UserError(
            f"{recipe.training.packs_per_step} packs a step cannot be shared evenly by {devices} devices: set "
            f"training.packs_per_step to a multiple of {devices}"
        )
    dataset, stands_in = data_or_stand_in(recipe)
    figures = plan_figures(recipe, dataset, build_model_config(recipe, dataset), devices)
    if peak_tflops is not None:
        figures["device_hours"] = figures["flops_total"] / (peak_tflops * 1e12 * utilisation) / 3600
    if as_json:
        print(json.dumps({"recipe": recipe.model_dump(mode="json"), "stand_in": stands_in, **figures}))
        return
    print(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    if stands_in:
        print(f"{recipe.data.source} is not here: planned with sizes like those of {recipe.data.stand_in}")
    print("\n".join(plan_lines(figures, devices)))
    if peak_tflops is not None:
        hours = figures["device_hours"]
        print(
            f"time              {hours:.0f} device-hours at {100 * utilisation:.0f} % of {peak_tflops:g} TFLOP/s: "
            f"{hours / devices / 24:.1f} days on {devices}"
        )


def data_or_stand_in(recipe: Recipe) -> tuple[Dataset, bool]:
    """The data of a recipe, or, where they are not here yet, the sizes that it says to plan with."""
    from ..build import build_dataset, build_stand_in

    if recipe.data.stand_in is not None and not Path(recipe.data.source).exists():
        return build_stand_in(recipe.data), True
    return build_dataset(recipe.data, recipe.model.patch_size), False


def plan_lines(figures: dict[str, Any], devices: int) -> list[str]:
    """The figures for people."""
    return [
        f"parameters        {figures['parameters'] / 1e6:.2f} M, {100 * figures['trained_share']:.4g} % trained",
        f"pictures          {figures['pictures']} in {counted(figures['classes'], 'class', 'classes')}",
        f"tokens a picture  {figures['tokens_per_picture']:.1f}",
        f"pictures a step   {figures['pictures_per_step']:.1f}",
        f"real tokens       {100 * figures['real_token_share']:.2f} % of the budget",
        f"epochs            {figures['epochs']:.1f} of {figures['packs_per_epoch']} packs",
        f"operations        {figures['flops_per_step'] / 1e9:.1f} GFLOP a step",
        f"                  {figures['flops_total'] / 1e15:.3f} PFLOP in all",
        f"memory            about {figures['memory_bytes'] / 2**30:.2f} GiB on each of {devices} devices"
        if devices > 1
        else f"memory            about {figures['memory_bytes'] / 2**30:.2f} GiB",
    ]


def check_memory(recipe: Recipe, config: FiTConfig, device: str, devices: int) -> None:
    """Raises ValueError when a step would not fit into the memory that is free now."""
    import torch

    from ..training.plan import needed_bytes
    from .memory import free_bytes

    needed, free = needed_bytes(recipe, config, devices), free_bytes(torch.device(device))
    if needed > free:
        raise UserError(
            f"a step over {recipe.training.tokens_per_pack} tokens would need about {needed / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free; lower training.tokens_per_pack (and raise training.packs_per_step to "
            "keep the batch), or set training.activation_checkpointing=true"
        )

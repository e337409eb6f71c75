"""What a training will cost, from its recipe and the sizes of its pictures alone."""

from __future__ import annotations

from typing import Any

from ..config import Recipe
from ..data.dataset import Dataset
from ..data.packing import plan_packs, real_share
from ..model.config import NetworkConfig
from .formula import attention_flops, forward_flops, parameters, training_bytes
from ..training.start import trained_share


def plan_figures(recipe: Recipe, dataset: Dataset, config: NetworkConfig, devices: int = 1) -> dict[str, Any]:
    """Cost of a run: parameters, operations of a step (the mean over an epoch), memory of a device, packing.

    real_token_share: of the budget of packs; padded_token_share: of batches where each picture takes the room of the
    longest.
    """
    settings = recipe.training
    lengths = dataset.epoch(0, settings.seed).hw.prod(1)
    packs = plan_packs(lengths, settings.max_tokens_per_batch, settings.seed, 0)
    trained = trained_share(config, settings.trainable)
    # Of the backward pass, the half that leads to the inputs is always needed, the other for weights that are trained
    # and for attention, which has none; activation checkpointing repeats the forward pass in it.
    forward, attention = forward_flops(config, lengths.tolist()), attention_flops(config, lengths.tolist())
    passes = 2 + trained + settings.activation_checkpointing
    step = int((passes * forward + (1 - trained) * attention) * settings.batches_per_step / len(packs))
    return {
        "parameters": parameters(config),
        "trained_share": trained,
        "pictures": len(dataset),
        "classes": dataset.num_classes,
        "tokens_per_picture": float(lengths.mean()),
        "pictures_per_step": len(lengths) / len(packs) * settings.batches_per_step,
        "packs_per_epoch": len(packs),
        "tokens_per_step": float(lengths.sum() / len(packs)) * settings.batches_per_step,
        "real_token_share": real_share(lengths, packs, settings.max_tokens_per_batch),
        "padded_token_share": float(lengths.mean() / lengths.max()),
        "epochs": settings.steps * settings.batches_per_step / len(packs),
        "flops_per_step": step,
        "flops_total": step * settings.steps,
        "memory_bytes": needed_bytes(recipe, config, devices),
    }


def needed_bytes(recipe: Recipe, config: NetworkConfig, devices: int) -> int:
    """Estimated memory of a training step on each of so many devices."""
    settings = recipe.training
    return training_bytes(
        config,
        settings.max_tokens_per_batch,
        settings.activation_checkpointing,
        settings.precision,
        trained_share(config, settings.trainable),
        devices if settings.sharding == "fsdp" else 1,
    )

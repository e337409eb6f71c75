"""What a training will cost, from its recipe, the sizes of its images, and a short step on this machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..data.dataset import Dataset
from ..data.packing import packing_efficiency, plan_packs
from ..model.config import FiTConfig, NetworkConfig
from ..model.network import bare_model, build_network
from ..settings.recipe import Recipe
from ..tokens import TokenBatch
from ..training.finetune import trained_fraction
from ..training.holdout import held_out_of
from ..training.optimizer import ITERATIONS, is_block_matrix
from .formula import attention_flops, forward_flops, parameters, training_bytes
from .measure import in_turn
from .profile import PASSES_OF_A_STEP, training_step

# A step is measured over at most this many FLOPs, and with two blocks of a network of more parameters than this.
MEASURED_FLOPS, LARGE = 1e11, 3e7


def plan_figures(recipe: Recipe, dataset: Dataset, config: NetworkConfig, devices: int = 1) -> dict[str, Any]:
    """Returns the cost of a run: parameters, FLOPs of a step (the mean over an epoch), memory of a device, packing.

    packing_efficiency is the fraction of the budget of batches that holds tokens, padding_efficiency that of images
    padded to the longest.
    """
    settings = recipe.training
    lengths = np.delete(dataset.epoch(0, settings.seed).hw.prod(1), held_out_of(dataset, settings))
    packs = plan_packs(lengths, settings.max_tokens_per_batch, settings.seed, 0)
    step = int(training_flops(recipe, config, lengths.tolist()) * settings.batches_per_step / len(packs))
    step += optimizer_flops(config) if settings.optimizer == "muon" else 0
    return {
        "parameters": parameters(config),
        "trained_fraction": trained_fraction(config, settings.trainable),
        "images": len(dataset),
        "classes": dataset.num_classes,
        "tokens_per_image": float(lengths.mean()),
        "images_per_step": len(lengths) / len(packs) * settings.batches_per_step,
        "packs_per_epoch": len(packs),
        "tokens_per_step": float(lengths.sum() / len(packs)) * settings.batches_per_step,
        "packing_efficiency": packing_efficiency(lengths, packs, settings.max_tokens_per_batch),
        "padding_efficiency": float(lengths.mean() / lengths.max()),
        "epochs": settings.steps * settings.batches_per_step / len(packs),
        "flops_per_step": step,
        "flops_total": step * settings.steps,
        "memory_bytes": needed_bytes(recipe, config, devices),
    }


def training_flops(recipe: Recipe, config: NetworkConfig, lengths: list[int]) -> float:
    """Returns the FLOPs of the matrix products when images of these numbers of tokens are trained on once."""
    trained = trained_fraction(config, recipe.training.trainable)
    forward, attention = forward_flops(config, lengths), attention_flops(config, lengths)
    # Of the backward pass, the half that leads to the inputs is always needed, the other for weights that are trained
    # and for attention, which has none; activation checkpointing repeats the forward pass in it.
    passes = 2 + trained + recipe.training.activation_checkpointing
    if recipe.training.objective == "transition":  # Two more of the network, and two of the model that teaches it.
        passes += 4
    return passes * forward + (1 - trained) * attention


def optimizer_flops(config: NetworkConfig) -> int:
    """Returns the FLOPs of the matrix products by which Muon makes the matrices of the blocks orthogonal, in a step."""
    flops, shapes = 0, dict(bare_model(config).named_parameters())
    for name, weight in shapes.items():
        if is_block_matrix(name, shapes):
            short, long = sorted(weight.shape)
            flops += ITERATIONS * 2 * (2 * short**2 * long + short**3)
    return flops


def needed_bytes(recipe: Recipe, config: NetworkConfig, devices: int) -> int:
    """Returns the estimated memory of a training step on each of `devices` devices, in bytes."""
    settings = recipe.training
    teacher = 4 * parameters(config) if settings.objective == "transition" else 0  # On each device, whole.
    return teacher + training_bytes(
        config,
        settings.max_tokens_per_batch,
        settings.activation_checkpointing,
        "fp32" if settings.precision == "fp32" else "bf16",
        trained_fraction(config, settings.trainable),
        devices if settings.sharding == "fsdp" else 1,
    )


@dataclass(frozen=True)
class MeasuredStep:
    """A short training step on this machine: its time, its FLOPs, its tokens, and the blocks of its network."""

    seconds: float
    flops: int
    tokens: int
    blocks: int


def measure_step(recipe: Recipe, dataset: Dataset, config: NetworkConfig, device: torch.device) -> MeasuredStep:
    """Measures a training step on noise in the sizes of the data: a few images, and of a large network two blocks."""
    if parameters(config) > LARGE:
        config = with_two_blocks(config)
    sizes = first_sizes(dataset.epoch(0, recipe.training.seed).hw, config, recipe.training.max_tokens_per_batch)
    lengths = [height * width for height, width in sizes]
    with device:
        model = build_network(config)
        batch = TokenBatch(torch.randn(sum(lengths), config.token_channels), sizes)
        labels = torch.zeros(len(sizes), dtype=torch.int64)
    step = training_step(model, batch, labels, recipe.training.precision == "bf16")
    seconds = min(in_turn({"step": step}, repeats=2)["step"])
    flops = PASSES_OF_A_STEP * forward_flops(config, lengths)
    return MeasuredStep(seconds, flops, sum(lengths), config.depth)


def with_two_blocks(config: NetworkConfig) -> NetworkConfig:
    """Returns the configuration of the same network with at most two blocks."""
    if isinstance(config, FiTConfig):
        head, targets = config.internal_head and 1, min(config.target_blocks, 1)
        return replace(config, depth=min(config.depth, 2), internal_head=head, target_blocks=targets)
    return replace(config, depth=min(config.depth, 2))


def first_sizes(hw: np.ndarray, config: NetworkConfig, budget: int) -> list[tuple[int, int]]:
    """The sizes of the first images, in patches, whose training step stays below `MEASURED_FLOPS` and `budget`."""
    sizes, flops, tokens = [], 0, 0
    for height, width in hw[:budget].tolist():
        flops += PASSES_OF_A_STEP * forward_flops(config, [height * width])
        tokens += height * width
        if sizes and (flops > MEASURED_FLOPS or tokens > budget):
            break
        sizes.append((height, width))
    return sizes

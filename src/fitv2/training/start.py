"""Training that starts from the weights of another model: fine-tuning and high-resolution post-training."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.dataset import Dataset
from ..errors import UserError
from ..model.config import NetworkConfig
from ..model.network import bare_model
from ..model.transformer import FiT
from ..checkpoints.model_folder import Pretrained
from .checkpoint import read_part

LABELS = "y_embedder.embedding_table.weight"
PATCHES = ("x_embedder.proj.weight", "x_embedder.proj.bias", "final_layer.linear.weight", "final_layer.linear.bias")


@dataclass(frozen=True)
class Start:
    """How a training started. anew: names of the reinitialised tensors; notes: sentences about them."""

    anew: set[str]
    notes: list[str]


def init_from(
    model: FiT, base: Pretrained, dataset: Dataset, reinit: Collection[str] = (), trainable: str = "all"
) -> Start:
    """Gives a new model the weights of `base`. On the meta device this only checks the shapes.

    The label embedding is reinitialised if the classes differ (the "no class" row is kept), the patch layers if their
    shape differs. reinit reinitialises more: "labels", "patches", or "trained" for all that is trained. Raises
    UserError, which lists every other tensor that does not fit.
    """
    state, own, anew, notes = base.model.state_dict(), model.state_dict(), set(), []
    if "labels" in reinit or not same_classes(base, dataset):
        if LABELS in state and state[LABELS].shape[1:] == own[LABELS].shape[1:]:
            state[LABELS] = torch.cat((own[LABELS][:-1], state[LABELS][-1:]))
        anew.add(LABELS)
        notes.append("the label embedding is reinitialised, except for its row for no class")
    if "patches" in reinit or any(name in state and state[name].shape != own[name].shape for name in PATCHES):
        state |= {name: own[name] for name in PATCHES}
        anew.update(PATCHES)
        notes.append("the patch layers are reinitialised")
    elif base.autoencoder != dataset.autoencoder:
        notes.append(
            f"it was trained on latents of {base.autoencoder}, not of {dataset.autoencoder}: if that is another "
            "autoencoder, reinitialise the patch layers (training.reinit=[patches])"
        )
    if "trained" in reinit:
        trained = trained_names(dict(model.named_parameters()), trainable, anew)
        state |= {name: own[name] for name in trained}
        anew.update(trained)
        notes.append("everything that is trained is reinitialised")
    check_shapes(state, own)
    model.load_state_dict(state)
    return Start(anew, notes)


def check_start(config: NetworkConfig, base: Pretrained, dataset: Dataset, reinit: Collection[str]) -> list[str]:
    """The notes of `init_from`, without a network in memory. Raises UserError like it."""
    return init_from(bare_model(config), base, dataset, reinit).notes


def same_classes(base: Pretrained, dataset: Dataset) -> bool:
    """Compares the class names if both have names, else their number."""
    if base.class_names and dataset.class_names:
        return list(base.class_names) == list(dataset.class_names)
    return base.model.config.num_classes == dataset.num_classes


def check_shapes(state: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    wrong = [
        f"{name} is {tuple(state[name].shape) if name in state else 'missing'} there and {tuple(tensor.shape)} here"
        for name, tensor in own.items()
        if name not in state or state[name].shape != tensor.shape
    ]
    wrong += [f"{name} is not here" for name in state.keys() - own.keys()]
    if wrong:
        raise UserError(
            "training.init_from names a model of another shape; give this one's model section the same sizes: "
            + "; ".join(sorted(wrong)[:10])
        )


def trained_names(names: Iterable[str], trainable: str, anew: Collection[str] = ()) -> list[str]:
    """Which parameters a run trains. anew: the reinitialised ones.

    "high-resolution" means what FiTv2 trains there, patch layers, biases, norms and AdaLN (Sec. III-F), and all of
    `anew`: nothing random may stay frozen.
    """
    return [name for name in names if trainable == "all" or trains_at_high_resolution(name) or name in anew]


def trained_before(checkpoint: Path, state: dict[str, Any], names: list[str], trainable: str) -> list[str]:
    """Which of the parameters `names` a run has trained so far; every process has to call this.

    state: state.json of its checkpoint. In older versions it does not say, but the parameters for which the optimiser
    has moments were trained.
    """
    if "trained" in state:
        return names if state["trained"] == "all" else state["trained"]
    if trainable == "all":
        return names
    return trained_names(names, trainable, {key.partition(".")[2] for key in read_part(checkpoint, "optimizer", {})})


def train_alone(model: FiT, names: Collection[str]) -> None:
    """Freezes all other parameters."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def trains_at_high_resolution(name: str) -> bool:
    """For XL/2 these are 14 % of the weights."""
    return name.startswith(("x_embedder", "final_layer")) or name.endswith(".bias") or "norm" in name or "adaLN" in name


def trained_share(config: NetworkConfig, trainable: str) -> float:
    """The fraction of a network's weights that is trained."""
    counts = {name: parameter.numel() for name, parameter in bare_model(config).named_parameters()}
    return sum(counts[name] for name in trained_names(counts, trainable)) / sum(counts.values())

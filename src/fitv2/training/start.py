"""Training that begins with the weights of another model: fine-tuning and high-resolution post-training."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from ..data.dataset import Dataset
from ..errors import UserError
from ..model.config import NetworkConfig
from ..model.network import bare_model
from ..model.transformer import FiT
from ..pretrained import Pretrained

LABELS = "y_embedder.embedding_table.weight"
PATCHES = ("x_embedder.proj.weight", "x_embedder.proj.bias", "final_layer.linear.weight", "final_layer.linear.bias")


def start_from(model: FiT, base: Pretrained, dataset: Dataset, begin_anew: Collection[str] = ()) -> list[str]:
    """Gives the fresh model the weights of `base`; returns what begins anew instead, as sentences.

    The label table does where the classes are others (the "no class" row is kept), the patch layers where they have
    another shape; begin_anew asks for more: "labels", "patches", or "trained" for all that is not frozen. Raises
    ValueError naming every other tensor that does not fit.
    """
    state, own, told = base.model.state_dict(), model.state_dict(), []
    if "labels" in begin_anew or not same_classes(base, dataset):
        state[LABELS] = torch.cat((own[LABELS][:-1], state[LABELS][-1:]))
        model.get_parameter(LABELS).requires_grad_(True)  # Nothing random may stay frozen.
        told.append("the label table begins anew, but for its row of no class")
    if "patches" in begin_anew or any(state[name].shape != own[name].shape for name in PATCHES):
        state |= {name: own[name] for name in PATCHES}
        told.append("the patch layers begin anew")
    elif base.autoencoder != dataset.autoencoder:
        told.append(
            f"its latents were those of {base.autoencoder}, and these are of {dataset.autoencoder}: if that is another "
            "autoencoder, begin the patch layers anew (training.begin_anew=[patches])"
        )
    if "trained" in begin_anew:
        state |= {name: own[name] for name, parameter in model.named_parameters() if parameter.requires_grad}
        told.append("all that is trained begins anew")
    check_shapes(state, own)
    model.load_state_dict(state)
    return told


def same_classes(base: Pretrained, dataset: Dataset) -> bool:
    """By name where both have names, else by number."""
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
            "training.start_from names a model of another shape; give this one's model section the same sizes: "
            + "; ".join(sorted(wrong)[:10])
        )


def freeze_for_high_resolution(model: FiT) -> None:
    """Leaves to training what FiTv2 trains at high resolution: patch layers, biases, norms and AdaLN (Sec. III-F)."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains_at_high_resolution(name))


def trains_at_high_resolution(name: str) -> bool:
    """For XL/2 these are 14 % of the weights."""
    return name.startswith(("x_embedder", "final_layer")) or name.endswith(".bias") or "norm" in name or "adaLN" in name


def trained_share(config: NetworkConfig, train_only: str) -> float:
    """Of the weights of such a network, those that are trained."""
    model = bare_model(config)
    if train_only == "high-resolution":
        freeze_for_high_resolution(model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained / sum(p.numel() for p in model.parameters())

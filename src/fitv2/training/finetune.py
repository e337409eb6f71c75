"""Training that starts from the weights of another model: fine-tuning and high-resolution post-training."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

import torch

from ..checkpoints.model_folder import Pretrained
from ..data.dataset import Dataset
from ..errors import UserError
from ..messages import shortened
from ..model.config import NetworkConfig
from ..model.network import Network, bare_model, misfits
from ..settings.recipe import TrainingSettings

LABELS = "y_embedder.embedding_table.weight"
HEAD = "internal_layer."
# Parts that a network may have and that of init_from not, or the other way round, by the beginnings of their names.
OPTIONAL = {
    "internal head": re.compile(r"internal_layer\."),
    "text conditioning": re.compile(r"context_embedder\.|.*\.cross\."),
}
PATCHES = tuple(
    f"{part}.{kind}"
    for part in ("x_embedder.proj", "final_layer.linear", f"{HEAD}linear")
    for kind in ("weight", "bias")
)


class Start(NamedTuple):
    """The names of the parameters that were reinitialised, and sentences about them for the log."""

    reinitialised: set[str]
    notes: list[str]


def init_from(model: Network, base: Pretrained, dataset: Dataset, training: TrainingSettings) -> Start:
    """Gives a new model the weights of `base`. On the meta device this only checks the shapes.

    The label embedding is not replaced if the classes differ (except for the row of "no class"), nor the patch layers
    if their shapes differ.

    Raises:
        UserError: The base predicts something else, it cannot teach transitions that are to be trained, or other
            tensors do not fit; the message lists them.
    """
    reinit = training.reinit
    if training.objective == "transition":
        check_transition(model.config, base, dataset)
    if model.config.prediction != base.model.config.prediction:
        raise UserError(
            f"training.init_from names a model that predicts {base.model.config.prediction}: set "
            f"model.prediction={base.model.config.prediction}"
        )
    state, own, reinitialised, notes = base.model.state_dict(), model.state_dict(), set(), []
    for part, names in OPTIONAL.items():
        if left := {name for name in state if names.match(name) and name not in own}:
            state = {name: tensor for name, tensor in state.items() if name not in left}
            notes.append(f"its {part} is left behind")
        if added := {name: tensor for name, tensor in own.items() if names.match(name) and name not in state}:
            state |= added
            reinitialised.update(added)
            notes.append(f"the {part} is new")
    if "labels" in reinit or not same_classes(base, dataset):
        if LABELS in state and state[LABELS].shape[1:] == own[LABELS].shape[1:]:
            state[LABELS] = torch.cat((own[LABELS][:-1], state[LABELS][-1:]))
        reinitialised.add(LABELS)
        notes.append("the label embedding is reinitialised, except for its row for no class")
    if "patches" in reinit or any(name in state and state[name].shape != own[name].shape for name in PATCHES):
        patches = {name: own[name] for name in PATCHES if name in own}
        state |= patches
        reinitialised.update(patches)
        notes.append("the patch layers are reinitialised")
    elif base.autoencoder != dataset.autoencoder:
        notes.append(
            f"it was trained on latents of {base.autoencoder}, not of {dataset.autoencoder}: if that is another "
            "autoencoder, reinitialise the patch layers (training.reinit=[patches])"
        )
    if "trained" in reinit:
        trained = trained_names(dict(model.named_parameters()), training.trainable, reinitialised)
        state |= {name: own[name] for name in trained}
        reinitialised.update(trained)
        notes.append("everything that is trained is reinitialised")
    if problems := misfits(model, state):
        raise UserError(
            "training.init_from names a model of another shape; give this one's model section the same sizes: "
            + shortened(problems, 10)
        )
    model.load_state_dict(state)
    return Start(reinitialised, notes)


def check_transition(config: NetworkConfig, base: Pretrained, dataset: Dataset) -> None:
    """Raises UserError unless the model `base` can teach transitions to a network of this configuration."""
    of_base, start = base.model.config, "objective=transition starts from a model"
    alike = ("prediction", "token_channels", "position_range", "context")
    others = [name for name in alike if getattr(of_base, name) != getattr(config, name)]
    if of_base.prediction == "epsilon" or of_base.target_blocks:
        raise UserError(f"{start} of a flow that is sampled in many steps, and init_from names another kind")
    if not same_classes(base, dataset):
        raise UserError(f"{start} of the same classes as the data, and these differ")
    if others:
        raise UserError(f"{start} with the same {', '.join(others)}: set them as it has them")


def same_classes(base: Pretrained, dataset: Dataset) -> bool:
    """Whether both have the same class names, or the same number of classes if one of them has no names."""
    if base.class_names and dataset.class_names:
        return list(base.class_names) == list(dataset.class_names)
    return base.model.config.num_classes == dataset.num_classes


def trained_names(names: Iterable[str], trainable: str, reinitialised: Collection[str] = ()) -> list[str]:
    """Returns the names of the parameters that a run trains.

    Args:
        trainable: "all"; or "high-resolution" for those that FiTv2 trains at high resolution: patch layers, biases,
            norms and AdaLN (Sec. III-F).
        reinitialised: The reinitialised parameters. They are always trained: nothing random may stay frozen.
    """
    return [name for name in names if trainable == "all" or trains_at_high_resolution(name) or name in reinitialised]


def trains_at_high_resolution(name: str) -> bool:
    """Whether FiTv2 trains a parameter at high resolution; for XL/2 these are 14 % of the weights."""
    return (
        name.startswith(("x_embedder", "final_layer", HEAD))
        or name.endswith(".bias")
        or "norm" in name
        or "adaLN" in name
    )


def trained_fraction(config: NetworkConfig, trainable: str) -> float:
    """Returns the fraction of a network's weights that is trained."""
    counts = {name: parameter.numel() for name, parameter in bare_model(config).named_parameters()}
    return sum(counts[name] for name in trained_names(counts, trainable)) / sum(counts.values())

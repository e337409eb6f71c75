"""AdamW over what is trained, and its state under the names of the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import TrainingSettings
from ..errors import UserError
from ..model.network import Network


def build_optimizer(model: Network, settings: TrainingSettings) -> torch.optim.AdamW:
    """For the weights that need a gradient."""
    return torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad],
        lr=settings.learning_rate,
        betas=(0.9, settings.beta2),
        weight_decay=settings.weight_decay,
        fused=True,
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """An optimiser's per-parameter state as flat tensors named `<entry>.<parameter>`."""
    state = optimizer.state_dict()["state"]
    return {f"{entry}.{names[i]}": torch.as_tensor(value) for i, s in state.items() for entry, value in s.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    index = {name: i for i, name in enumerate(names)}
    for key, value in tensors.items():
        entry, _, name = key.partition(".")
        if name not in index:
            raise UserError(f"the optimiser's checkpoint is of another network: it has {name}")
        state.setdefault(index[name], {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

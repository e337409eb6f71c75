"""AdamW over the trained parameters, its learning rate over a run, and its state under the parameters' names."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError
from ..model.network import Network
from ..settings import TrainingSettings


def build_optimizer(model: Network, settings: TrainingSettings) -> torch.optim.AdamW:
    """Returns AdamW over the parameters that require a gradient."""
    return torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad],
        lr=settings.learning_rate,
        betas=(0.9, settings.beta2),
        weight_decay=settings.weight_decay,
        fused=True,
    )


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """Returns the learning rate of a step, counted from 0: linear warm-up, constant, then linear decay to zero."""
    rise = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    decay = settings.steps * settings.decay_fraction
    fall = min(1.0, (settings.steps - step) / decay) if decay else 1.0
    return settings.learning_rate * rise * fall


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """Returns the state of each parameter as tensors named `<entry>.<parameter>`; names: in the optimiser's order."""
    state = optimizer.state_dict()["state"]
    return {f"{entry}.{names[i]}": torch.as_tensor(value) for i, s in state.items() for entry, value in s.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, Tensor]) -> None:
    """Restores what `optimizer_tensors` returned. Raises UserError for a tensor of another parameter."""
    state: dict[int, dict[str, Tensor]] = {}
    index = {name: i for i, name in enumerate(names)}
    for key, value in tensors.items():
        entry, _, name = key.partition(".")
        if name not in index:
            raise UserError(f"the optimiser's checkpoint is of another network: it has {name}")
        state.setdefault(index[name], {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

"""Networks of every kind of configuration: new, of shapes alone, and around given weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import UserError
from .config import FiTConfig, NetworkConfig, SiTConfig
from .dit import DiT
from .transformer import FiT

Network = FiT | DiT


def build_network(config: NetworkConfig) -> Network:
    """Returns a new network, its weights drawn from torch's global generator."""
    if isinstance(config, FiTConfig):
        return FiT(config)
    assert isinstance(config, SiTConfig)
    return DiT(config)


class _NoInitialValues(TorchFunctionMode):
    """Omits the filling of weights with random numbers, for which the meta device would load torch's compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def bare_model(config: NetworkConfig) -> Network:
    """Returns a network on the meta device: shapes without values, at once and in no memory, whatever its size."""
    with torch.device("meta"), _NoInitialValues():
        return build_network(config)


def model_of(config: NetworkConfig, state: dict[str, Tensor]) -> Network:
    """Returns a network in eval mode whose weights are the tensors of `state` themselves; errors as `load_strictly`."""
    model = bare_model(config)
    load_strictly(model, state, assign=True)
    return model.eval()


def load_strictly(model: nn.Module, state: dict[str, Tensor], assign: bool = False) -> None:
    """Loads `state` (assign: makes its tensors the model's own). Raises UserError that lists every wrong key."""
    if problems := misfits(model, state):
        raise UserError("the weights do not fit the model: " + "; ".join(problems))
    model.load_state_dict(state, assign=assign)


def misfits(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Returns what keeps `state` from being loaded: missing and unexpected keys, and those of another shape."""
    own = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    problems = [f"missing {key}" for key in own.keys() - state.keys()]
    problems += [f"unexpected {key}" for key in state.keys() - own.keys()]
    problems += [
        f"{key} has shape {tuple(state[key].shape)}, the model needs {own[key]}"
        for key in own.keys() & state.keys()
        if tuple(state[key].shape) != own[key]
    ]
    return sorted(problems)

"""Exponential moving average of a model's weights, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Averages by name. The decay warms up as (1 + n) / (10 + n), so that early averages forget the initialisation."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average = {name: p.detach().float().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Moves the averages towards the weights after optimiser step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        weights = [p.float() for p in model.parameters()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)

    def load(self, state: dict[str, Tensor]) -> None:
        for name, average in self.average.items():
            average.copy_(state[name])

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """The model with averaged weights, for the length of a with block."""
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        model.load_state_dict(self.average)
        try:
            yield
        finally:
            model.load_state_dict(own)

"""Exponential moving average of a model's weights, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..distributed.parallel import local
from ..errors import UserError


class EMA:
    """Averages by parameter name. The decay warms up as (1 + n) / (10 + n), so that early averages forget the start."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average = {name: p.detach().float().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, finite: Tensor | None = None) -> None:
        """Moves the averages towards the weights after an optimiser step.

        finite: () bool; where it is false, the step was skipped, and the averages stay as they are.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [local(average) for average in self.average.values()]
        weights = [local(p).float() for p in model.parameters()]
        # As a tensor, so that the host need not wait to know it.
        weight = (1 - decay) * (torch.ones((), device=weights[0].device) if finite is None else finite)
        torch._foreach_lerp_(averages, weights, [weight] * len(weights))  # pyright: ignore[reportPrivateImportUsage]

    def load(self, state: dict[str, Tensor]) -> None:
        """Restores the averages. Raises UserError if one is missing or of another shape."""
        wrong = [n for n, average in self.average.items() if n not in state or state[n].shape != average.shape]
        if wrong:
            raise UserError(f"the averaged weights of {', '.join(wrong[:3])} are missing or of another shape")
        for name, average in self.average.items():
            average.copy_(state[name])

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Swaps the averages into `model` for a with block, and restores its own weights on exit."""
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        model.load_state_dict(self.average)
        try:
            yield
        finally:
            model.load_state_dict(own)

"""Classifier-free guidance (arXiv 2207.12598) as a wrapper from velocities to a velocity."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .ode import Velocity

VelocityPair = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def guide(
    both: VelocityPair,
    conditional: Velocity,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
    power: float = 0.0,
    channels: int | None = None,
) -> Velocity:
    """The guided velocity v_null + s * (v_cond - v_null), with s = `guidance_scale(t, scale, power)`.

    both(x, t) gives (v_cond, v_null) of one forward; conditional(x, t) gives v_cond alone, and is all that is computed
    outside `interval` (times, both ends included; arXiv 2404.07724) and where s is 1.
    channels: None guides every channel of a token; n only the first n, the others stay conditional. The authors guide
    the first three latent channels, n = 3 p^2.
    """

    def scale_at(t: Tensor) -> float:
        if power == 0 and tuple(interval) == (0, 1):  # Always the same: a time on a GPU would have to be waited for.
            return guidance_scale(0.0, scale, power)
        t = t.cpu()
        # In the precision of the time, so that an end of the interval meets a time of the grid.
        low, high = torch.tensor(interval, dtype=t.dtype)
        return guidance_scale(float(t), scale, power) if low <= t <= high else 1.0

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        scale_now = scale_at(t)
        if scale_now == 1.0:
            return conditional(x, t)
        v_cond, v_null = both(x, t)
        guided = v_null + scale_now * (v_cond - v_null)
        return guided if channels is None else torch.cat((guided[:, :channels], v_cond[:, channels:]), dim=1)

    return velocity


def guidance_scale(t: float, scale: float, power: float) -> float:
    """The power-cosine schedule of the authors' code: `scale` at t = 0 falling to 1 at t = 1; constant for power 0."""
    return 1 + (scale - 1) * (1 - math.cos(math.pi * (1 - t) ** power)) / 2

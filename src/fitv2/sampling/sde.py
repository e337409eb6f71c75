"""Solvers of the SDE whose marginals are those of the flow (SiT, arXiv 2401.08740, Sec. 2).

dx = [velocity + D(t) * score] dt + sqrt(2 D(t)) dW for any D(t) >= 0; SiT's w_t is 2 D(t). The score follows from the
velocity, so a drift costs one model call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..flow.path import shift_time, velocity_to_data, velocity_to_score
from .ode import Callback, Expand, Velocity, scalars

# D(t) of norm n, t a tensor. On this path SiT's "sigma" (the noise level) and "linear" are the same.
DIFFUSION_COEFFICIENTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "constant": lambda t, norm: torch.full_like(t, norm),
    "sbdm": lambda t, norm: norm * (1 - t) / t,
    "sigma": lambda t, norm: norm * (1 - t),
    "linear": lambda t, norm: norm * (1 - t),
    "decreasing": lambda t, norm: (norm * torch.cos(math.pi * t) + 1).square() / 4,
    "increasing-decreasing": lambda t, norm: norm * torch.sin(math.pi * t).square(),
}


def sde_grid(steps: int, last_step_size: float = 0.04, shift: float = 1.0) -> Tensor:
    """Returns (steps + 1,) float32 times from 0 to 1, the last interval `last_step_size` wide, the others equal.

    `steps` is the authors' num_steps: num_steps - 1 stochastic steps and the last one. For a sampling without a last
    step use `fitv2.sampling.ode.time_grid`; the authors' num_steps then has num_steps - 1 steps. `shift` warps all
    times but the last.
    """
    if steps < 1 or not 0 < last_step_size < 1:
        raise ValueError(f"need steps >= 1 and 0 < last_step_size < 1, not {steps} and {last_step_size}")
    grid = (1 - last_step_size) * shift_time(torch.linspace(0, 1, steps, dtype=torch.float64), shift)
    return torch.cat((grid, grid.new_ones(1))).float()


@dataclass(frozen=True)
class ReverseSDE:
    """The SDE itself: the velocity, D(t), the source of standard normal noise (T, C), and `expand` as of the ODE."""

    velocity: Velocity
    diffusion: Callable[[Tensor], Tensor]
    draw: Callable[[], Tensor]
    expand: Expand = scalars

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        v = self.velocity(x, t)
        return v + self.expand(self.diffusion(t)) * velocity_to_score(v, x, self.expand(t))

    def noise(self, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
        return self.expand((2 * self.diffusion(start) * (end - start)).sqrt()) * self.draw().to(x)


def euler_maruyama_step(sde: ReverseSDE, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Steps by the drift at the start of the step, and adds its noise."""
    return mean_step(sde, x, start, end) + sde.noise(x, start, end)


def heun_step(sde: ReverseSDE, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Adds the noise of the step first, then takes Heun's step of the drift, as SiT does (after arXiv 2206.00364)."""
    x = x + sde.noise(x, start, end)
    first = sde.drift(x, start)
    second = sde.drift(x + sde.expand(end - start) * first, end)
    return x + sde.expand((end - start) / 2) * (first + second)


def mean_step(sde: ReverseSDE, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Steps by Euler-Maruyama without its noise."""
    return x + sde.expand(end - start) * sde.drift(x, start)


def tweedie_step(sde: ReverseSDE, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Returns the expected data given x; on this path that is an Euler step of the ODE to t = 1."""
    return velocity_to_data(sde.velocity(x, start), x, sde.expand(start))


def ode_step(sde: ReverseSDE, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Takes an Euler step of the ODE."""
    return x + sde.expand(end - start) * sde.velocity(x, start)


METHODS = {"euler": euler_maruyama_step, "heun": heun_step}
# The method of each SDE solver of `fitv2.sampling.solvers`.
METHOD_OF = {"euler-maruyama": "euler", "sde-heun": "heun"}
# The last interval is never Heun's, because the score is infinite at its end: "none" has Euler-Maruyama there.
LAST_STEPS = {"mean": mean_step, "tweedie": tweedie_step, "euler": ode_step, "none": euler_maruyama_step}


def sample_sde(
    velocity: Velocity,
    x: Tensor,
    times: Tensor,
    draw: Callable[[], Tensor],
    callback: Callback | None = None,
    expand: Expand = scalars,
    *,
    method: str = "euler",
    diffusion: str = "sigma",
    diffusion_norm: float = 1.0,
    last_step: str = "mean",
) -> Tensor:
    """Integrates x (T, C) from times[0] to times[-1] = 1.

    Args:
        velocity, x, times, callback, expand: As for the solvers of `fitv2.sampling.ode`.
        draw: Gives standard normal noise (T, C); called once per noisy step.
        method: A key of `METHODS`, for all intervals but the last.
        diffusion: A key of `DIFFUSION_COEFFICIENTS`.
        diffusion_norm: The factor of D(t).
        last_step: A key of `LAST_STEPS`, for the last interval, free of noise unless "none".

    Raises:
        ValueError: Another name.
    """
    form = _named(DIFFUSION_COEFFICIENTS, "diffusion", diffusion)
    step_of = [_named(METHODS, "method", method)] * (len(times) - 2) + [_named(LAST_STEPS, "last_step", last_step)]
    # SBDM is infinite at t = 0: the first step takes its end's value, which keeps the marginals as any D(t) does.
    floor = times[1] if diffusion == "sbdm" else torch.zeros_like(times[1])
    sde = ReverseSDE(velocity, lambda t: form(t.clamp(min=floor), diffusion_norm), draw, expand)
    for step, (advance, (start, end)) in enumerate(zip(step_of, pairwise(times), strict=True), 1):
        x = advance(sde, x, start, end)
        if callback is not None:
            callback(step, end, x)
    return x


def _named(table: Mapping[str, Any], what: str, name: str) -> Any:
    if name not in table:
        raise ValueError(f"{what} is one of {', '.join(table)}, not {name!r}")
    return table[name]

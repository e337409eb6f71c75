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
from .ode import Callback, Velocity

# D(t) of norm n, t a scalar tensor. On this path SiT's "sigma" (the noise level) and "linear" are the same.
DIFFUSIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "constant": lambda t, norm: torch.full_like(t, norm),
    "sbdm": lambda t, norm: norm * (1 - t) / t,
    "sigma": lambda t, norm: norm * (1 - t),
    "linear": lambda t, norm: norm * (1 - t),
    "decreasing": lambda t, norm: (norm * torch.cos(math.pi * t) + 1).square() / 4,
    "increasing-decreasing": lambda t, norm: norm * torch.sin(math.pi * t).square(),
}


def sde_grid(steps: int, last_step_size: float = 0.04, shift: float = 1.0) -> Tensor:
    """(steps + 1,) float32 times from 0 to 1, the last interval `last_step_size` wide, the others equal (shift 1).

    `steps` is the authors' num_steps: num_steps - 1 stochastic steps and the last one. For a sampling without a last
    step use `fitv2.samplers.ode.time_grid`; the authors' num_steps then has num_steps - 1 steps.
    """
    if steps < 1 or not 0 < last_step_size < 1:
        raise ValueError(f"need steps >= 1 and 0 < last_step_size < 1, not {steps} and {last_step_size}")
    grid = (1 - last_step_size) * shift_time(torch.linspace(0, 1, steps, dtype=torch.float64), shift)
    return torch.cat((grid, grid.new_ones(1))).float()


@dataclass(frozen=True)
class Process:
    """The SDE itself: the velocity, D(t) and the source of standard normal noise (T, C)."""

    velocity: Velocity
    diffusion: Callable[[Tensor], Tensor]
    draw: Callable[[], Tensor]

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        v = self.velocity(x, t)
        return v + self.diffusion(t) * velocity_to_score(v, x, t)

    def noise(self, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
        return (2 * self.diffusion(start) * (end - start)).sqrt() * self.draw().to(x)


def euler_maruyama_step(process: Process, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """The drift at the start of the step, and its noise."""
    return mean_step(process, x, start, end) + process.noise(x, start, end)


def heun_step(process: Process, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """All the noise of the step first, then Heun's step of the drift, as SiT samples (after arXiv 2206.00364)."""
    x = x + process.noise(x, start, end)
    first = process.drift(x, start)
    second = process.drift(x + (end - start) * first, end)
    return x + (end - start) / 2 * (first + second)


def mean_step(process: Process, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Euler-Maruyama without its noise."""
    return x + (end - start) * process.drift(x, start)


def tweedie_step(process: Process, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """The expected data given x, wherever the interval ends; on this path an Euler step of the ODE to t = 1."""
    return velocity_to_data(process.velocity(x, start), x, start)


def ode_step(process: Process, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """An Euler step of the ODE."""
    return x + (end - start) * process.velocity(x, start)


METHODS = {"euler": euler_maruyama_step, "heun": heun_step}
# The last interval is never Heun's, because the score is infinite at its end: "none" has Euler-Maruyama there.
LAST_STEPS = {"mean": mean_step, "tweedie": tweedie_step, "euler": ode_step, "none": euler_maruyama_step}


def sample_sde(
    velocity: Velocity,
    x: Tensor,
    times: Tensor,
    draw: Callable[[], Tensor],
    callback: Callback | None = None,
    *,
    method: str = "euler",
    diffusion: str = "sigma",
    diffusion_norm: float = 1.0,
    last_step: str = "mean",
) -> Tensor:
    """x (T, C) at times[0] to (T, C) at times[-1] = 1; `draw()` gives standard normal (T, C), once per noisy step.

    method: a key of `METHODS`, for all intervals but the last. last_step: a key of `LAST_STEPS`, for the last one, free
    of noise unless "none". diffusion: a key of `DIFFUSIONS`. Raises ValueError for other names.
    """
    form = _named(DIFFUSIONS, "diffusion", diffusion)
    step_of = [_named(METHODS, "method", method)] * (len(times) - 2) + [_named(LAST_STEPS, "last_step", last_step)]
    # SBDM is infinite at t = 0: the first step takes its end's value, which keeps the marginals as any D(t) does.
    floor = float(times[1]) if diffusion == "sbdm" else 0.0
    process = Process(velocity, lambda t: form(t.clamp(min=floor), diffusion_norm), draw)
    for step, (advance, (start, end)) in enumerate(zip(step_of, pairwise(times), strict=True), 1):
        x = advance(process, x, start, end)
        if callback is not None:
            callback(step, end, x)
    return x


def sde_model_calls(method: str, steps: int) -> int:
    """How often `sample_sde` evaluates the velocity on a grid of `steps` intervals."""
    return 2 * steps - 1 if method == "heun" else steps


def _named(table: Mapping[str, Any], what: str, name: str) -> Any:
    if name not in table:
        raise ValueError(f"{what} is one of {', '.join(table)}, not {name!r}")
    return table[name]

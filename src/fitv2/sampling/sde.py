"""Solvers of the SDE whose marginals are those of the flow (SiT, arXiv 2401.08740, Sec. 2).

dx = [velocity + D(t) * score] dt + sqrt(2 D(t)) dW for any D(t) >= 0; SiT's w_t is 2 D(t). The score follows from the
velocity, so a drift costs one model call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from itertools import pairwise

import torch
from torch import Tensor

from ..flow.path import velocity_to_score
from .ode import Callback, Expand, Velocity, scalars, shifted

# D(t) of norm n, t a tensor. On this path SiT's "sigma" (the noise level) and "linear" are the same.
DIFFUSION_COEFFICIENTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "constant": lambda t, norm: torch.full_like(t, norm),
    "sbdm": lambda t, norm: norm * (1 - t) / t,
    "sigma": lambda t, norm: norm * (1 - t),
    "linear": lambda t, norm: norm * (1 - t),
    "decreasing": lambda t, norm: (norm * torch.cos(math.pi * t) + 1).square() / 4,
    "increasing-decreasing": lambda t, norm: norm * torch.sin(math.pi * t).square(),
}
SDE_METHODS = ("euler", "heun")
# The method of each SDE solver of `fitv2.sampling.solver_names`.
METHOD_OF = {"euler-maruyama": "euler", "sde-heun": "heun"}
# "mean" is the drift without noise, "none" a step of Euler-Maruyama. "tweedie", the expected data given x, is the same
# as "euler", a step of the ODE to t = 1. The score is infinite at t = 1, so none of them is Heun's.
LAST_STEPS = ("mean", "tweedie", "euler", "none")


def sde_grid(steps: int, last_step_size: float = 0.04, shift: float | Tensor = 1.0) -> Tensor:
    """Returns (steps + 1,) float32 times from 0 to 1, the last interval `last_step_size` wide, the others equal.

    `steps` is the authors' num_steps: num_steps - 1 stochastic steps and the last one. For a sampling without a last
    step use `fitv2.sampling.ode.time_grid`; the authors' num_steps then has num_steps - 1 steps. `shift` warps all
    times but the last; a shift (B,) per image gives (steps + 1, B).
    """
    if steps < 1 or not 0 < last_step_size < 1:
        raise ValueError(f"need steps >= 1 and 0 < last_step_size < 1, not {steps} and {last_step_size}")
    grid = (1 - last_step_size) * shifted(torch.linspace(0, 1, steps, dtype=torch.float64), shift)
    return torch.cat((grid, torch.ones_like(grid[:1]))).float()


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
        method: One of `SDE_METHODS`, for all intervals but the last.
        diffusion: A key of `DIFFUSION_COEFFICIENTS`.
        diffusion_norm: The factor of D(t).
        last_step: One of `LAST_STEPS`, for the last interval, free of noise unless "none".

    Raises:
        ValueError: Another name.
    """
    check_name("method", method, SDE_METHODS)
    check_name("diffusion", diffusion, DIFFUSION_COEFFICIENTS)
    check_name("last_step", last_step, LAST_STEPS)
    # SBDM is infinite at t = 0: the first step takes its end's value, which keeps the marginals as any D(t) does.
    floor = times[1] if diffusion == "sbdm" else torch.zeros_like(times[1])

    def coefficient(t: Tensor) -> Tensor:
        return DIFFUSION_COEFFICIENTS[diffusion](t.clamp(min=floor), diffusion_norm)

    def drift(x: Tensor, t: Tensor) -> Tensor:
        v = velocity(x, t)
        return v + expand(coefficient(t)) * velocity_to_score(v, x, expand(t))

    def noise(start: Tensor, end: Tensor) -> Tensor:
        return expand((2 * coefficient(start) * (end - start)).sqrt()) * draw().to(x)

    for step, (start, end) in enumerate(pairwise(times), 1):
        width, last = expand(end - start), step == len(times) - 1
        if last and last_step in ("tweedie", "euler"):
            x = x + width * velocity(x, start)
        elif last and last_step == "mean":
            x = x + width * drift(x, start)
        elif method == "heun" and not last:  # The noise first, then Heun's step, as in SiT (after arXiv 2206.00364).
            x = x + noise(start, end)
            slope = drift(x, start)
            x = x + expand((end - start) / 2) * (slope + drift(x + width * slope, end))
        else:  # Euler-Maruyama.
            x = x + width * drift(x, start) + noise(start, end)
        if callback is not None:
            callback(step, end, x)
    return x


def check_name(what: str, name: str, known: Collection[str]) -> None:
    """Raises ValueError for an unknown name."""
    if name not in known:
        raise ValueError(f"{what} is one of {', '.join(known)}, not {name!r}")

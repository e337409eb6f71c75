"""Solvers of the probability-flow ODE dx/dt = velocity(x, t) over a given grid of times.

`SOLVERS` holds them by name, all with one signature: (velocity, x, times, callback=None, expand=...) -> x at the last
time. x is (T, C). times are increasing points in [0, 1], from noise at 0 to data at 1: (N + 1,) for all images, or
(N + 1, B) for a grid per image. The velocity gets each time as a scalar or (B,), and `expand` makes (T, 1) of (B,). The
callback gets (steps done, time reached, x) after each step. Gradients flow through the solvers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import UserError
from ..flow.path import shift_time

Velocity = Callable[[Tensor, Tensor], Tensor]
Callback = Callable[[int, Tensor, Tensor], None]
Expand = Callable[[Tensor], Tensor]


def scalars(t: Tensor) -> Tensor:
    """Is the `expand` of a grid for all images. Raises ValueError for a time per image."""
    if t.ndim:
        raise ValueError("a grid of times per image needs `expand`, such as `GuidedModel.expand`")
    return t


def time_grid(steps: int, shift: float | Tensor = 1.0) -> Tensor:
    """Returns (steps + 1,) float32 times from exactly 0 to exactly 1: N steps are N intervals.

    The authors' `num_steps` counts the points: their num_steps=N is N - 1 steps here. `shift` warps the grid
    (`fitv2.flow.path.shift_time`): below 1 more of the steps are near the noise. A shift (B,) per image gives
    (steps + 1, B).
    """
    if steps < 1:
        raise UserError(f"a sampler needs at least one step, not {steps}")
    return shifted(torch.linspace(0, 1, steps + 1, dtype=torch.float64), shift).float()


def shifted(times: Tensor, shift: float | Tensor) -> Tensor:
    """Returns times (N,) warped by a shift, or (N, B) by a shift (B,) per image."""
    return shift_time(times[:, None] if isinstance(shift, Tensor) else times, shift)


class Tableau(NamedTuple):
    """The Butcher tableau of an explicit Runge-Kutta method: nodes in the step, rows of the stages, final weights."""

    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


TABLEAUX = {
    "euler": Tableau((0,), ((),), (1,)),
    "midpoint": Tableau((0, 1 / 2), ((), (1 / 2,)), (0, 1)),
    "heun": Tableau((0, 1), ((), (1,)), (1 / 2, 1 / 2)),  # torchdiffeq: heun2
    "heun3": Tableau((0, 1 / 3, 2 / 3), ((), (1 / 3,), (0, 2 / 3)), (1 / 4, 0, 3 / 4)),
    "rk4": Tableau((0, 1 / 2, 1 / 2, 1), ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
    # Kutta's 3/8 rule, which torchdiffeq and the authors call rk4.
    "rk4_38": Tableau((0, 1 / 3, 2 / 3, 1), ((), (1 / 3,), (-1 / 3, 1), (1, -1, 1)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)),
}


def runge_kutta(
    tableau: Tableau,
    velocity: Velocity,
    x: Tensor,
    times: Tensor,
    callback: Callback | None = None,
    expand: Expand = scalars,
) -> Tensor:
    """Integrates by an explicit Runge-Kutta method; no stage lies beyond the end of its step."""
    for step, (start, end) in enumerate(pairwise(times), 1):
        width = end - start
        slopes: list[Tensor] = []
        for node, row in zip(tableau.nodes, tableau.rows, strict=True):
            slopes.append(velocity(advance(x, expand(width), row, slopes), start + node * width))
        x = advance(x, expand(width), tableau.weights, slopes)
        if callback is not None:
            callback(step, end, x)
    return x


def advance(x: Tensor, width: Tensor, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    """Returns x + width * (the weighted sum of slopes); slopes of weight 0 are not touched."""
    used = [weight * slope for weight, slope in zip(weights, slopes, strict=True) if weight]
    return x + width * sum(used) if used else x


def adams_bashforth(
    velocity: Velocity, x: Tensor, times: Tensor, callback: Callback | None = None, expand: Expand = scalars
) -> Tensor:
    """Integrates by two-step Adams-Bashforth for steps of any width: second order at one model call per step.

    The first step is Euler's: its error of second order happens only once, and so does not lower the order.
    """
    previous: tuple[Tensor, Tensor] | None = None
    for step, (start, end) in enumerate(pairwise(times), 1):
        width, slope = end - start, velocity(x, start)
        change = slope
        if previous is not None:
            last_slope, last_width = previous
            change = slope + expand(width / (2 * last_width)) * (slope - last_slope)
        x, previous = x + expand(width) * change, (slope, width)
        if callback is not None:
            callback(step, end, x)
    return x


def transitions(
    velocity: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Tensor,
    times: Tensor,
    callback: Callback | None = None,
    expand: Expand = scalars,
) -> Tensor:
    """Goes from each time to the next in one evaluation of a network that predicts the mean velocity between them.

    velocity gets the time where a step begins and the one to which it leads. See `fitv2.flow.transition`.
    """
    for step, (start, end) in enumerate(pairwise(times), 1):
        x = x + expand(end - start) * velocity(x, start, end)
        if callback is not None:
            callback(step, end, x)
    return x


def adaptive(
    velocity: Velocity,
    x: Tensor,
    times: Tensor,
    callback: Callback | None = None,
    expand: Expand = scalars,
    *,
    method: str = "dopri5",
    rtol: float = 1e-3,
    atol: float = 1e-6,
) -> Tensor:
    """Integrates by one of torchdiffeq's solvers that choose their own steps; times must be (N + 1,).

    Times between the first and the last only set where the callback is called, after integration. The last step ends at
    the last time. The authors' last step may overshoot t = 1 and is interpolated back, with a larger error.
    """
    from torchdiffeq import odeint  # pyright: ignore[reportMissingTypeStubs]

    scalars(times[0])
    times = times.to(x.device) if callback is not None else times[[0, -1]].to(x.device)

    def bounded(t: Tensor, x: Tensor) -> Tensor:  # The probe for the first step's width may still pass t = 1.
        return velocity(x, t.clamp(0, 1))

    options = {"step_t": times[-1:]}
    states: Any = odeint(bounded, x, times, method=method, rtol=rtol, atol=atol, options=options)
    if callback is not None:
        for step in range(1, len(times)):
            callback(step, times[step], states[step])
    return states[-1]


SOLVERS: dict[str, Callable[..., Tensor]] = {
    **{name: partial(runge_kutta, tableau) for name, tableau in TABLEAUX.items()},
    "ab2": adams_bashforth,
    "transition": transitions,
    "dopri5": partial(adaptive, method="dopri5"),
    "adaptive_heun": partial(adaptive, method="adaptive_heun"),
}

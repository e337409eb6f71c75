"""The rectified path between noise and data (FiTv2, arXiv 2410.13925; SiT, arXiv 2401.08740).

x_t = (1 - t) * noise + t * data, t in [0, 1]: **t = 1 is data**, and the velocity dx_t/dt is data - noise. Given x_t
and t, velocity, data, noise and score determine each other; the conversions go through the velocity. In all of them t
is a number or a tensor that broadcasts against x_t, and the result has the shape of x_t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Time = Tensor | float


def interpolate(data: Tensor, noise: Tensor, t: Time) -> Tensor:
    """The point x_t of the path; exactly noise at t = 0 and data at t = 1."""
    return (1 - t) * noise + t * data


def velocity_to_data(velocity: Tensor, x_t: Tensor, t: Time) -> Tensor:
    """The data at which the straight line through x_t ends."""
    return x_t + (1 - t) * velocity


def velocity_to_noise(velocity: Tensor, x_t: Tensor, t: Time) -> Tensor:
    """The noise from which the straight line through x_t comes."""
    return x_t - t * velocity


def velocity_to_score(velocity: Tensor, x_t: Tensor, t: Time) -> Tensor:
    """The score of the density of x_t, -E[noise | x_t] / (1 - t); infinite at t = 1."""
    return (t * velocity - x_t) / (1 - t)


def data_to_velocity(data: Tensor, x_t: Tensor, t: Time) -> Tensor:
    """Inverse of `velocity_to_data`; undetermined at t = 1, where x_t is the data."""
    return (data - x_t) / (1 - t)


def noise_to_velocity(noise: Tensor, x_t: Tensor, t: Time) -> Tensor:
    """Inverse of `velocity_to_noise`; undetermined at t = 0, where x_t is the noise."""
    return (x_t - noise) / t


def score_to_velocity(score: Tensor, x_t: Tensor, t: Time) -> Tensor:
    """Inverse of `velocity_to_score`; undetermined at t = 0, where every velocity has the score -x_t."""
    return ((1 - t) * score + x_t) / t


@dataclass(frozen=True, kw_only=True)
class TimeDensity:
    """Where on the path training happens: uniform, or sigmoid(u) with u normal of `mean` and `std` (FiTv2's choice).

    A positive mean trains more near the data. The uniform density reads neither mean nor std.
    """

    kind: Literal["logit_normal", "uniform"] = "logit_normal"
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("logit_normal", "uniform"):
            raise ValueError(f"the time density is 'logit_normal' or 'uniform', not {self.kind!r}")
        if self.std <= 0:
            raise ValueError(f"the standard deviation of the time density must be positive, not {self.std}")


LOGIT_NORMAL = TimeDensity()


def sample_times(count: int, generator: torch.Generator, density: TimeDensity) -> Tensor:
    """(count,) float32 times in [0, 1], on the generator's device."""
    device = generator.device
    if density.kind == "uniform":
        return torch.rand(count, generator=generator, device=device)
    u = torch.randn(count, generator=generator, device=device)
    return torch.sigmoid(density.mean + density.std * u)


def shift_time(t: Tensor, shift: float) -> Tensor:
    """s t / (1 + (s - 1) t): maps [0, 1] onto itself, towards the data for shift > 1, towards the noise for shift < 1.

    Belongs to the grid of a sampler; the model sees the time it is given. Where noise is at time 1 (Stable Diffusion 3,
    arXiv 2403.03206) the same warp has the factor 1 / shift.
    """
    if shift <= 0:
        raise ValueError(f"the time shift must be positive, not {shift}")
    return shift * t / (1 + (shift - 1) * t)

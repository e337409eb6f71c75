"""The rectified path between noise and data (FiTv2, arXiv 2410.13925; SiT, arXiv 2401.08740).

x_t = (1 - t) * noise + t * data, t in [0, 1]: **t = 1 is data**, and the velocity dx_t/dt is data - noise. In all
functions t is a number or a tensor that broadcasts against x_t, and the result has the shape of x_t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import UserError
from ..messages import check_known

Time = Tensor | float
Density = Literal["logit_normal", "uniform", "cosmap", "mode"]
# Beyond these scales of the mode density its map from uniform numbers to times is not monotonic.
MODE_SCALES = (-1.0, 2 / (math.pi - 2))


def interpolate(data: Tensor, noise: Tensor, t: Time) -> Tensor:
    """Returns the point x_t of the path; exactly noise at t = 0 and data at t = 1."""
    return (1 - t) * noise + t * data


def velocity_to_score(velocity: Tensor, x_t: Tensor, t: Time) -> Tensor:
    """Returns the score of the density of x_t, -E[noise | x_t] / (1 - t); infinite at t = 1."""
    return (t * velocity - x_t) / (1 - t)


@dataclass(frozen=True, kw_only=True)
class TimeDensity:
    """The density of the training times on the path.

    logit_normal (FiTv2's choice): sigmoid(u) with u normal of `mean` and `std`; a positive mean trains more near the
    data. uniform. cosmap and mode, of Stable Diffusion 3 (arXiv 2403.03206, Sec. 3.1), map u uniform in [0, 1]: cosmap
    to 1 - 1 / (tan(pi u / 2) + 1), mode to 1 - u - s (cos^2(pi u / 2) - 1 + u) with s = `scale`, above 0 more in the
    middle of the path, below at its ends. Their time runs the other way, from data to noise, but both densities are
    symmetric about 1/2. Raises UserError for a std that is not positive and for a scale beyond `MODE_SCALES`.
    """

    kind: Density = "logit_normal"
    mean: float = 0.0
    std: float = 1.0
    scale: float = 1.29

    def __post_init__(self) -> None:
        check_known("time density", self.kind, get_args(Density))
        if self.std <= 0:
            raise UserError(f"the standard deviation of the time density must be positive, not {self.std}")
        if not MODE_SCALES[0] <= self.scale <= MODE_SCALES[1]:
            raise UserError(f"the scale of the mode density is from -1 to 2 / (pi - 2), not {self.scale}")

    def times(self, u: Tensor) -> Tensor:
        """Returns times that have this density if the numbers u are uniform in [0, 1]."""
        if self.kind == "logit_normal":
            return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))
        if self.kind == "cosmap":
            u = 1 - 1 / (torch.tan(math.pi / 2 * u) + 1)
        elif self.kind == "mode":
            u = 1 - u - self.scale * (torch.cos(math.pi / 2 * u).square() - 1 + u)
        return u.clamp(0, 1)  # Rounding may lead a hair beyond.


LOGIT_NORMAL = TimeDensity()


def sample_times(count: int, generator: torch.Generator, density: TimeDensity) -> Tensor:
    """Returns (count,) float32 times in [0, 1], on the generator's device."""
    device = generator.device
    if density.kind == "logit_normal":
        return torch.sigmoid(density.mean + density.std * torch.randn(count, generator=generator, device=device))
    return density.times(torch.rand(count, generator=generator, device=device))


def shift_time(t: Tensor, shift: float | Tensor) -> Tensor:
    """Returns s t / (1 + (s - 1) t): maps [0, 1] onto itself, towards the data for s > 1, the noise for s < 1.

    The model sees the time it is given. Where noise is at time 1 (Stable Diffusion 3, arXiv 2403.03206) the same warp
    has the factor 1 / shift. Raises UserError for a shift that is not positive.
    """
    if isinstance(shift, float) and shift <= 0:
        raise UserError(f"the time shift must be positive, not {shift}")
    return shift * t / (1 + (shift - 1) * t)


def shift_times(t_B: Tensor, lengths_B: Tensor, base_tokens: int | None) -> Tensor:
    """Returns the times (B,) of images of these token counts as training shifts them; None: as they are."""
    if base_tokens is None:
        return t_B
    return shift_time(t_B.double(), shift_by_size(lengths_B, base_tokens)).to(t_B.dtype)


def shift_by_size(lengths_B: Tensor, base_tokens: int) -> Tensor:
    """Returns the shift sqrt(base / tokens) of images of these token counts, (B,) float64.

    The same noise hides less of a larger image, because neighbours average it out; so larger images spend more of their
    times near the noise, and `base_tokens` tokens keep theirs (Stable Diffusion 3, arXiv 2403.03206, Sec. 5.3.2).
    """
    return (base_tokens / lengths_B.double()).sqrt()

"""The noise schedule of a diffusion process and its closed-form results (DDPM, arXiv 2006.11239).

Step s = 0 is nearly data, the last nearly noise. All tables are float64; what is read out of them is float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UserError

STEPS = 1000


@dataclass(frozen=True)
class Schedule:
    """The betas of a diffusion process, or of one that goes through some of its steps only.

    Attributes:
        betas: (N,) float64, the noise added at each step.
        steps: The N steps of the full process that are kept, ascending. The network gets these numbers.
    """

    betas: Tensor
    steps: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.steps)

    @cached_property
    def step_table(self) -> Tensor:
        """(N,) int64, the steps."""
        return torch.tensor(self.steps, device=self.betas.device)

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """(N,) the fraction of the data's variance that is left after each step."""
        return (1 - self.betas).cumprod(0)

    @cached_property
    def alphas_cumprod_prev(self) -> Tensor:
        """(N,) the same before each step."""
        return torch.cat((self.alphas_cumprod.new_ones(1), self.alphas_cumprod[:-1]))

    @cached_property
    def posterior_variance(self) -> Tensor:
        """Variance of the state before a step, given the state after it and the data."""
        return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance(self) -> Tensor:
        """Its logarithm; at the first step, where it would be minus infinity, that of the second (or, alone, beta)."""
        second = self.posterior_variance[1:2] if len(self) > 1 else self.betas
        return torch.cat((second, self.posterior_variance[1:])).log()

    def on(self, device: torch.device) -> Schedule:
        """Returns the same schedule with its tables on a device, where they stay."""
        if device != self.betas.device and device not in self._copies:
            dtype = torch.float32 if device.type == "mps" else self.betas.dtype  # MPS has no float64.
            self._copies[device] = Schedule(self.betas.to(device, dtype), self.steps)
        return self._copies.get(device, self)

    @cached_property
    def _copies(self) -> dict[torch.device, Schedule]:
        return {}

    def respaced(self, steps: tuple[int, ...]) -> Schedule:
        """Returns the process that goes through these of its steps only."""
        after = self.alphas_cumprod[list(steps)]
        before = torch.cat((after.new_ones(1), after[:-1]))
        return Schedule(1 - after / before, steps)


def linear_schedule() -> Schedule:
    """Returns the 1 000 steps of DDPM, DiT and FiT: betas from 0.0001 to 0.02."""
    return Schedule(torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64), tuple(range(STEPS)))


def ddpm_steps(count: int, of: int = STEPS) -> tuple[int, ...]:
    """Returns `count` steps from the first to the last, evenly spaced before rounding; UserError for too many."""
    check_count(count, of)
    stride = (of - 1) / max(count - 1, 1)
    position, steps = 0.0, []
    for _ in range(count):  # Summed, not multiplied: where both round differently, the authors' steps are these.
        steps.append(round(position))
        position += stride
    return tuple(steps)


def ddim_steps(count: int, of: int = STEPS) -> tuple[int, ...]:
    """Returns `count` steps, evenly spaced from the first one. Raises UserError for too many."""
    check_count(count, of)
    return tuple(i * of // count for i in range(count))


def check_count(count: int, of: int = STEPS) -> None:
    """Raises UserError unless `count` steps can be taken of a process of `of` steps."""
    if not 1 <= count <= of:
        raise UserError(f"a diffusion process of {of} steps is sampled in 1 to {of} steps, not {count}")


class Denoised(NamedTuple):
    """Predicted data and noise, and mean and log variance of the state before a step, each (T, C)."""

    data: Tensor
    noise: Tensor
    mean: Tensor
    log_variance: Tensor


def diffuse(schedule: Schedule, data: Tensor, noise: Tensor, index: Tensor) -> Tensor:
    """Returns the state after the steps `index`, which broadcasts against data from the left: (T,) for (T, C)."""
    return (
        gather_like(schedule.alphas_cumprod.sqrt(), index, data) * data
        + gather_like((1 - schedule.alphas_cumprod).sqrt(), index, data) * noise
    )


def posterior_mean(schedule: Schedule, data: Tensor, state: Tensor, index: Tensor) -> Tensor:
    """Returns the mean of the state before a step, given the state after it and the data."""
    of_data = schedule.betas * schedule.alphas_cumprod_prev.sqrt() / (1 - schedule.alphas_cumprod)
    of_state = (1 - schedule.alphas_cumprod_prev) * (1 - schedule.betas).sqrt() / (1 - schedule.alphas_cumprod)
    return gather_like(of_data, index, data) * data + gather_like(of_state, index, state) * state


def denoise(schedule: Schedule, state: Tensor, output: Tensor, index: Tensor) -> Denoised:
    """Reads an output (T, 2 C): the noise in the state, and its log variance from -1 (least) to 1 (largest)."""
    noise, fraction = output.chunk(2, dim=-1)
    data = gather_like((1 / schedule.alphas_cumprod).sqrt(), index, state) * state
    data = data - gather_like((1 / schedule.alphas_cumprod - 1).sqrt(), index, state) * noise
    least = gather_like(schedule.posterior_log_variance, index, state)
    largest = gather_like(schedule.betas.log(), index, state)
    fraction = (fraction + 1) / 2
    mean = posterior_mean(schedule, data, state, index)
    return Denoised(data, noise, mean, fraction * largest + (1 - fraction) * least)


def gather_like(table: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """Returns entries of a table as float32 that broadcast against `like`.

    The table is where the index is. A single index may be on the CPU for any `like`: a number travels with the kernel.
    """
    values = table[index].float()
    return values.view(*values.shape, *[1] * (like.ndim - values.ndim)) if index.ndim else values

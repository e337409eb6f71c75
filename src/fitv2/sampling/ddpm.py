"""Samplers of a diffusion process: DDPM with the learned variance, and deterministic DDIM (arXiv 2010.02502).

x is (T, C). `output(x, step)` gives (T, 2 C), the noise and where the variance lies, at a step of the full process (a
scalar tensor); guidance, if any, is inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..diffusion.schedule import Schedule, denoise, gather_like

Output = Callable[[Tensor, Tensor], Tensor]


def sample_ddpm(output: Output, x: Tensor, schedule: Schedule, draw: Callable[[], Tensor]) -> Tensor:
    """Goes from noise x through all steps of the schedule; draw() gives normal noise (T, C), for all but the last."""
    for index, step in backwards(schedule):
        x = ddpm_step(schedule, x, output(x, step).float(), index, draw if index else None)
    return x


def sample_ddim(output: Output, x: Tensor, schedule: Schedule) -> Tensor:
    """Goes from noise x through all steps without randomness; the learned variance is not used."""
    for index, step in backwards(schedule):
        after = denoise(schedule, x, output(x, step).float(), index)
        before = gather_like(schedule.alphas_cumprod_prev, index, x)
        x = before.sqrt() * after.data + (1 - before).sqrt() * after.noise
    return x


def backwards(schedule: Schedule) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the index of each step, and its number in the full process, by which the model knows it."""
    for i in reversed(range(len(schedule))):
        yield torch.tensor(i), torch.tensor(float(schedule.steps[i]))


def ddpm_step(
    schedule: Schedule, x: Tensor, output: Tensor, index: Tensor, draw: Callable[[], Tensor] | None
) -> Tensor:
    """Returns the state before the step `index`; without draw its mean, as at the first step."""
    before = denoise(schedule, x, output, index)
    return before.mean if draw is None else before.mean + (before.log_variance / 2).exp() * draw().to(x)

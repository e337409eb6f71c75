"""The training objective of FiT: squared error of the noise, and a variational bound for the variance.

As in DiT and improved DDPM (arXiv 2102.09672, Sec. 3.1): the bound teaches the variance only, the noise is held fixed
in it. Shape suffixes as in `fitv2.tokens`: T tokens, B images, C token channels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..tokens import Denoiser, TokenBatch, drop_conditions, upload
from .schedule import Schedule, denoise, diffuse, gather_like, posterior_mean

# Half a grey level of 256 in [-1, 1], and the beginning of the outermost levels.
HALF_LEVEL, EDGE = 1 / 255, 0.999


class DiffusionLoss(NamedTuple):
    """loss: the scalar to differentiate, the mean over images of mse + bound. mse, bound: (B,) float32, detached."""

    loss: Tensor
    mse: Tensor
    bound: Tensor

    @property
    def reported(self) -> Tensor:
        """() float32, detached: the loss."""
        return self.loss.detach()


def diffusion_loss(
    network: Denoiser,
    data: TokenBatch,
    labels_B: Tensor,
    null_label: int,
    generator: torch.Generator,
    schedule: Schedule,
    class_dropout_prob: float = 0.1,
    context: TokenBatch | None = None,
) -> DiffusionLoss:
    """Returns the loss at random steps and noise; images lose label and text with probability `class_dropout_prob`.

    Everything random comes from `generator`, on the CPU and in this order: steps (B,), a uniform number per image (B,),
    noise (T, C). context: that of each image and, last, of no text; None for a network without one.
    """
    device = data.x.device
    index_B = upload(torch.randint(len(schedule), (len(data),), generator=generator), device)
    labels_B, context = drop_conditions(labels_B, null_label, context, class_dropout_prob, generator)
    labels_B = upload(labels_B, device)
    noise_TC = upload(torch.randn(data.x.shape, generator=generator), device)
    return diffusion_loss_at(network, data, noise_TC, index_B, labels_B, schedule, context)


def diffusion_loss_at(
    network: Denoiser,
    data: TokenBatch,
    noise_TC: Tensor,
    index_B: Tensor,
    labels_B: Tensor,
    schedule: Schedule,
    context: TokenBatch | None = None,
) -> DiffusionLoss:
    """Returns both terms as means over each image's own tokens and channels, then over images."""
    schedule, index_T = schedule.on(index_B.device), index_B[data.image_index]
    state_TC = diffuse(schedule, data.x, noise_TC, index_T)
    step_B = schedule.step_table[index_B].float()
    output = network(data.with_x(state_TC), step_B, labels_B, context).float()
    predicted_TC, fraction_TC = output.chunk(2, dim=-1)
    mse_B = data.image_mean((predicted_TC - noise_TC).square().mean(1))
    held = torch.cat((predicted_TC.detach(), fraction_TC), dim=-1)
    bound_B = data.image_mean(variational_bound(schedule, data.x, state_TC, held, index_T).mean(1))
    return DiffusionLoss((mse_B + bound_B).mean(), mse_B.detach(), bound_B.detach())


def variational_bound(schedule: Schedule, data: Tensor, state: Tensor, output: Tensor, index: Tensor) -> Tensor:
    """Returns bits per number, in the shape of the data: the step's KL divergence, or at step 0 the likelihood."""
    guess = denoise(schedule, state, output, index)
    mean = posterior_mean(schedule, data, state, index)
    difference = gather_like(schedule.posterior_log_variance, index, data) - guess.log_variance
    squared = (mean - guess.mean).square() * (-guess.log_variance).exp()
    divergence = (difference.exp() - difference - 1 + squared) / 2
    first = (index == 0).view(*index.shape, *[1] * (data.ndim - index.ndim))
    return torch.where(first, -log_likelihood(data, guess.mean, guess.log_variance), divergence) / math.log(2)


def log_likelihood(data: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Returns the nats of 8-bit levels in [-1, 1] under a Gaussian."""

    def cdf(x: Tensor) -> Tensor:  # The approximation by tanh that DDPM, DiT and FiT train with.
        x = (x - mean) * inverse_std
        return (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2

    inverse_std = (-log_variance / 2).exp()
    below, above = cdf(data + HALF_LEVEL), cdf(data - HALF_LEVEL)
    mass = torch.where(data < -EDGE, below, torch.where(data > EDGE, 1 - above, below - above))
    return mass.clamp(min=1e-12).log()

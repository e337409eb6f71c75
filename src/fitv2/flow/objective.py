"""The flow-matching loss on a packed batch (FiTv2, arXiv 2410.13925).

Shape suffixes as in `fitv2.tokens`: T tokens, B images, C token channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..tokens import Denoiser, TokenBatch, upload
from .path import LOGIT_NORMAL, TimeDensity, interpolate, sample_times


class FlowLoss(NamedTuple):
    """loss: the scalar to differentiate. per_image: (B,) float32, detached. t: (B,) float32, the time of each image."""

    loss: Tensor
    per_image: Tensor
    t: Tensor


def flow_loss(
    velocity: Denoiser,
    data: TokenBatch,
    labels_B: Tensor,
    null_label: int,
    generator: torch.Generator,
    class_dropout_prob: float = 0.1,
    density: TimeDensity = LOGIT_NORMAL,
) -> FlowLoss:
    """Returns the loss at random times and noise; each image loses its label with probability `class_dropout_prob`.

    Everything random comes from `generator`, on the CPU and in this order, so that a step is the same on every device:
    times (B,), a uniform number per label (B,), noise (T, C).
    """
    device = data.x.device
    t_B = upload(sample_times(len(data), generator, density), device)
    dropped_B = upload(torch.rand(len(data), generator=generator) < class_dropout_prob, device)
    noise_TC = upload(torch.randn(data.x.shape, generator=generator), device)
    return flow_loss_at(velocity, data, noise_TC, t_B, labels_B.masked_fill(dropped_B, null_label))


def flow_loss_at(velocity: Denoiser, data: TokenBatch, noise_TC: Tensor, t_B: Tensor, labels_B: Tensor) -> FlowLoss:
    """Returns the squared error of the velocity: mean over each image's own tokens and channels, then over images.

    So an image weighs the same whatever its size. The error is taken in float32, whatever dtype autocast gives.
    """
    x_TC = interpolate(data.x, noise_TC, data.expand_to_tokens(t_B)[:, None])
    predicted_TC = velocity(data.with_x(x_TC), t_B, labels_B)
    error_TC = predicted_TC.float() - (data.x - noise_TC)
    per_image_B = data.image_mean(error_TC.square().mean(1))
    return FlowLoss(per_image_B.mean(), per_image_B.detach(), t_B)

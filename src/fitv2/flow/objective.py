"""The flow-matching loss on a packed batch (FiTv2, arXiv 2410.13925).

Shape suffixes as in `fitv2.tokens`: T tokens, B images, C token channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..positions import random_positions
from ..tokens import Denoiser, TokenBatch, drop_conditions, upload
from .path import LOGIT_NORMAL, TimeDensity, interpolate, sample_times, shift_times


class FlowLoss(NamedTuple):
    """loss: the scalar to differentiate. per_image: (B,) float32, detached. t: (B,) float32, the time of each image."""

    loss: Tensor
    per_image: Tensor
    t: Tensor

    @property
    def reported(self) -> Tensor:
        """() float32, detached: the mean of `per_image`, which compares with other trainings."""
        return self.per_image.mean()


def flow_loss(
    velocity: Denoiser,
    data: TokenBatch,
    labels_B: Tensor,
    null_label: int,
    generator: torch.Generator,
    class_dropout_prob: float = 0.1,
    density: TimeDensity = LOGIT_NORMAL,
    *,
    shift_tokens: int | None = None,
    position_range: int | None = None,
    internal_weight: float = 0.0,
    least_noise: float = 0.0,
    context: TokenBatch | None = None,
) -> FlowLoss:
    """Returns the loss at random times and noise; images lose label and text with probability `class_dropout_prob`.

    Everything random comes from `generator`, on the CPU and in this order, so that a step is the same on every device:
    times (B,), a uniform number per image (B,), noise (T, C), positions.

    Args:
        velocity: The network.
        data: The images, x is (T, C).
        labels_B: (B,) int64, on the CPU or the device of the images.
        null_label: The label of no class.
        generator: The source of everything random.
        class_dropout_prob: From 0 to 1.
        density: The density of the times.
        shift_tokens: Images of more tokens than this get noisier times, see `shift_by_size`; None leaves all as drawn.
        position_range: Of the network, if it has one: positions are drawn in it.
        internal_weight: The weight of the loss of the network's internal head; 0 for a network without one.
        least_noise: Of a network that predicts clean images, see `flow_loss_at`.
        context: The packed context of each image and, last, that of no text; None for a network without one.
    """
    device, options = data.x.device, {}
    t_B = upload(shift_times(sample_times(len(data), generator, density), data.counts, shift_tokens), device)
    labels_B, context = drop_conditions(labels_B, null_label, context, class_dropout_prob, generator)
    labels_B = upload(labels_B, device)
    noise_TC = upload(torch.randn(data.x.shape, generator=generator), device)
    if position_range is not None:
        options["positions_T2"] = random_positions(data, position_range, generator)
    return flow_loss_at(velocity, data, noise_TC, t_B, labels_B, context, internal_weight, least_noise, **options)


def flow_loss_at(
    velocity: Denoiser,
    data: TokenBatch,
    noise_TC: Tensor,
    t_B: Tensor,
    labels_B: Tensor,
    context: TokenBatch | None = None,
    internal_weight: float = 0.0,
    least_noise: float = 0.0,
    **options: Any,
) -> FlowLoss:
    """Returns the squared error of the velocity: mean over each image's own tokens and channels, then over images.

    So an image weighs the same whatever its size. The error is taken in float32, whatever dtype autocast gives. With
    `internal_weight`, that much of the error of the internal head is added to the loss (arXiv 2512.24176, Sec. 3.1);
    what is reported per image is the error of the last layer alone. least_noise: what the network divides by where
    1 - t is less, 0 for a network that predicts velocities; the target is divided by the same, so that the clean image
    remains the best prediction (JiT, arXiv 2511.13720). context: that of each image, if the network takes one. options:
    further arguments of the network.
    """
    if internal_weight:
        options["internal"] = True
    x_TC = interpolate(data.x, noise_TC, data.expand_to_tokens(t_B)[:, None])
    output = velocity(data.with_x(x_TC), t_B, labels_B, context, **options).float()
    target_TC = data.x - noise_TC
    if least_noise:
        target_TC = target_TC * data.expand_to_tokens(((1 - t_B) / least_noise).clamp(max=1))[:, None]
    of_heads = [data.image_mean((v - target_TC).square().mean(1)) for v in output.split(data.x.shape[1], dim=1)]
    loss = of_heads[0].mean()
    if internal_weight:
        loss = loss + internal_weight * of_heads[1].mean()
    return FlowLoss(loss, of_heads[0].detach(), t_B)

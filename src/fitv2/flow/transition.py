"""Post-training of a flow for few steps: the network learns the mean velocity from one time to any later one.

From z at time t, u(z, t, r) = (z_r - z) / (r - t) leads to time r in one evaluation; for r = t it is the velocity. Its
derivative along the path gives what to learn: u = v + (r - t) du/dt (MeanFlow, arXiv 2505.13447, Eq. 6). Here v is the
guided velocity of the trained model (the teacher), so that guidance becomes part of the network; du/dt is a central
difference (Transition Models, arXiv 2509.04394), which any attention kernel can compute; and the network is the trained
one, whose last blocks see r in place of t (Decoupled MeanFlow, arXiv 2510.24474).

Shape suffixes as in `fitv2.tokens`: T tokens, B images, C token channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..tokens import Denoiser, TokenBatch, drop_conditions, upload
from .objective import FlowLoss
from .path import interpolate

# (images z at their times, t (B,), labels (B,), their context, the context of no text) to their guided velocity (T, C).
# Times and labels are on the CPU: guidance depends on them, and reading them back from a GPU would make the host wait.
Teacher = Callable[[TokenBatch, Tensor, Tensor, TokenBatch | None, TokenBatch | None], Tensor]
# The fraction of images whose r is t, where the target is the teacher's velocity itself.
INSTANT = 0.25
# Keeps the weight 1 / (error + this) of an image finite.
FLOOR = 1e-3


def transition_loss(
    network: Denoiser,
    data: TokenBatch,
    labels_B: Tensor,
    null_label: int,
    generator: torch.Generator,
    teacher: Teacher,
    class_dropout_prob: float = 0.1,
    epsilon: float = 0.005,
    context: TokenBatch | None = None,
) -> FlowLoss:
    """Returns the loss at random pairs of times and noise; images lose label and text as in `flow_loss`.

    labels_B: (B,) int64 on the CPU, as the teacher needs them.

    Everything random comes from `generator`, on the CPU and in this order: times (2, B), a uniform number per image for
    r = t, one for its label, noise (T, C). context: that of each image and, last, of no text.
    """
    t_B, r_B = torch.rand(2, len(data), generator=generator).sort(dim=0).values
    r_B = torch.where(torch.rand(len(data), generator=generator) < INSTANT, t_B, r_B)
    no_text = context and context.select([len(data)])
    labels_B, context = drop_conditions(labels_B, null_label, context, class_dropout_prob, generator)
    noise_TC = upload(torch.randn(data.x.shape, generator=generator), data.x.device)
    return transition_loss_at(network, data, noise_TC, t_B, r_B, labels_B, teacher, epsilon, context, no_text)


def transition_loss_at(
    network: Denoiser,
    data: TokenBatch,
    noise_TC: Tensor,
    t_B: Tensor,
    r_B: Tensor,
    labels_B: Tensor,
    teacher: Teacher,
    epsilon: float = 0.005,
    context: TokenBatch | None = None,
    no_text: TokenBatch | None = None,
) -> FlowLoss:
    """Returns the squared error of the mean velocity from t to r: mean over each image's own numbers, then over images.

    Each image is weighted by 1 / (error + 0.001), so that pairs of distant times, whose targets vary most, do not
    dominate (MeanFlow, Sec. 4.3). The unweighted error is reported per image. Times and labels are on the CPU. context:
    the context of each image. no_text: the context of the empty caption, for the teacher's guidance.
    """
    of_teacher = t_B, labels_B
    t_B, r_B, labels_B = (upload(per_image, data.x.device) for per_image in (t_B, r_B, labels_B))
    z_TC = interpolate(data.x, noise_TC, data.expand_to_tokens(t_B)[:, None])
    with torch.no_grad():
        velocity_TC = teacher(data.with_x(z_TC), *of_teacher, context, no_text)
        slope_TC = derivative(network, data.with_x(z_TC), velocity_TC, t_B, r_B, labels_B, epsilon, context)
        target_TC = velocity_TC + data.expand_to_tokens(r_B - t_B)[:, None] * slope_TC
    predicted_TC = network(data.with_x(z_TC), t_B, labels_B, context, target_B=r_B).float()
    error_B = data.image_mean((predicted_TC - target_TC).square().mean(1))
    return FlowLoss((error_B / (error_B.detach() + FLOOR)).mean(), error_B.detach(), t_B)


def derivative(
    network: Denoiser,
    z: TokenBatch,
    velocity_TC: Tensor,
    t_B: Tensor,
    r_B: Tensor,
    labels_B: Tensor,
    epsilon: float = 0.005,
    context: TokenBatch | None = None,
) -> Tensor:
    """Returns du/dt (T, C) along the path through z with this velocity, by a difference within [0, 1].

    epsilon: half the width of the difference, as wide as the precision of the network needs it.
    """
    before_B, after_B = (t_B - epsilon).clamp(min=0), (t_B + epsilon).clamp(max=1)
    before, after = (
        network(
            z.with_x(z.x + z.expand_to_tokens(s_B - t_B)[:, None] * velocity_TC), s_B, labels_B, context, target_B=r_B
        ).float()
        for s_B in (before_B, after_B)
    )
    return (after - before) / z.expand_to_tokens(after_B - before_B)[:, None]

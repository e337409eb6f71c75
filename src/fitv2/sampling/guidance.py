"""Classifier-free guidance (arXiv 2207.12598): a model and the labels and texts of a packed batch as one function."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..diffusion.schedule import STEPS
from ..model.config import NetworkConfig
from ..tokens import Denoiser, TokenBatch, upload
from .spec import Sampling


class GuidedModel:
    """The guided output of a denoiser for the images of one packed batch.

    The output is v_null + s * (v_cond - v_null), with s = `guidance_scale(t, scale, power)`. One model call computes
    both halves: each image is followed by itself without label and text, so that a batch sorted by length stays sorted.
    Where s is 1 for all images, as outside the guidance interval, only v_cond is computed. The variance that a model of
    noise predicts is not guided. Internal guidance comes first: each v is head + w (last - head) (arXiv 2512.24176).

    Args:
        denoiser: The model. It may keep a state between calls, so give each batch its own.
        config: The configuration of the model.
        hw: (B, 2) int64 on the CPU, the height and width of each image in patches.
        labels: (B,) int64 on the CPU.
        sampling: The guidance: scales, intervals, power and channels.
        device: The device of the model. All that follows from sizes and labels is uploaded once.
        context: The packed context of the images, for a model that takes one.
        null_context: That to guide away from, of each image: the context of the empty or of a negative prompt.

    Attributes:
        scale: The guidance scale, which may be changed between calls.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        config: NetworkConfig,
        hw: Tensor,
        labels: Tensor,
        sampling: Sampling,
        device: torch.device,
        context: TokenBatch | None = None,
        null_context: TokenBatch | None = None,
    ) -> None:
        self.denoiser, self.config, self.sampling, self.device = denoiser, config, sampling, device
        self.scale = sampling.guidance
        nulls = torch.full_like(labels, config.null_label)
        worded = context is not None and null_context is not None and not same_context(context, null_context)
        self._guidable = worded or not torch.equal(labels, nulls)
        self._labels = upload(labels, device)
        self._labels_twice = upload(torch.stack((labels, nulls), 1).flatten(), device)
        self.batch, self._context = TokenBatch(torch.empty(int(hw.prod(1).sum()), 0, device=device), hw), context
        self._twice = [i for i in range(len(hw)) for _ in range(2)]
        self.batch.select(self._twice)  # Uploads the indices of the pairs now, not between two steps.
        self._context_twice = context and null_context and in_pairs(context, null_context)

    def __call__(self, x: Tensor, t: Tensor, target: Tensor | None = None) -> Tensor:
        """Returns the guided output (T, output channels) in float32 for tokens x (T, C).

        Args:
            x: The images at their times.
            t: A scalar, or a time per image (B,); on the CPU, or on the device for a solver that computes its times
                there.
            target: Alike, the time to which a step leads, for a model with `target_blocks`.
        """
        batch = self.batch.with_x(x)
        scale = self._at(t, self.scale, self.sampling.interval, self.sampling.power) if self._guidable else 1.0
        internal = self._at(t, self.sampling.internal_guidance, self.sampling.internal_interval)
        if isinstance(scale, float) and scale == 1.0:
            return self._output(batch, t, target, internal, self._labels, self._context)
        both = batch.select(self._twice)
        if isinstance(internal, Tensor):
            internal = self.batch.with_x(internal).select(self._twice).x
        output = both.with_x(self._output(both, t, target, internal, self._labels_twice, self._context_twice))
        cond, null = (output.select(range(half, len(both), 2)).x for half in (0, 1))
        guided = null + scale * (cond - null)
        channels = self.sampling.channels
        if channels is None and self.config.prediction == "epsilon":  # All of the noise, nothing of its variance.
            channels = self.config.token_channels
        return guided if channels is None else torch.cat((guided[:, :channels], cond[:, channels:]), dim=1)

    def _output(
        self,
        batch: TokenBatch,
        t: Tensor,
        target: Tensor | None,
        scale: float | Tensor,
        labels: Tensor,
        context: TokenBatch | None,
    ) -> Tensor:
        """Returns the output of the model, with internal guidance of that scale: one number, or (T, 1)."""
        options: dict[str, Any] = {}
        if target is not None:
            options["target_B"] = self._per_image(target, len(batch))
        if not (isinstance(scale, float) and scale == 1.0):
            options["internal"] = True
        output = self.denoiser(batch, self._per_image(t, len(batch)), labels, context, **options).float()
        if "internal" not in options:
            return output
        last, head = output.chunk(2, dim=1)
        return head + scale * (last - head)

    def expand(self, t: Tensor) -> Tensor:
        """Returns a time or a number per image (B,) as (T, 1) on the device, and a scalar unchanged."""
        return per_token(self.batch, t)

    def _at(self, t: Tensor, scale: float, interval: tuple[float, float], power: float = 0.0) -> float | Tensor:
        """Returns a guidance scale at t: one number, or (T, 1) if the times of the images have different scales."""
        if power == 0 and (interval == (0, 1) or scale == 1):  # Does not wait for a time on a GPU.
            return guidance_scale(0.0, scale, 0.0)
        t = t.detach().cpu()
        t = 1 - t / STEPS if self.config.prediction == "epsilon" else t
        # In the precision of the time, so that an end of the interval meets a time of the grid.
        low, high = torch.tensor(interval, dtype=t.dtype)
        scales = [guidance_scale(float(time), scale, power) if low <= time <= high else 1.0 for time in t.view(-1)]
        return scales[0] if len(set(scales)) == 1 else self.expand(torch.tensor(scales))

    def _per_image(self, t: Tensor, images: int) -> Tensor:
        """Returns a time per image on the device. A scalar from the CPU is an argument of a kernel, not a copy."""
        if t.ndim == 1:
            return upload(t.repeat_interleave(images // len(t)), self.device)
        if t.device.type == self.device.type:
            return t.expand(images)
        return torch.full((images,), float(t), dtype=t.dtype, device=self.device)


def per_token(batch: TokenBatch, t: Tensor) -> Tensor:
    """Returns a number per image (B,) as (T, 1) on the device of the batch, and a scalar unchanged."""
    return t if t.ndim == 0 else batch.expand_to_tokens(upload(t, batch.x.device))[:, None]


def in_pairs(first: TokenBatch, second: TokenBatch) -> TokenBatch:
    """Returns the images of two batches in turn: the first of both, then the second of both, and so on."""
    both = TokenBatch(torch.cat((first.x, second.x)), [*first.sizes, *second.sizes])
    return both.select([i + half for i in range(len(first)) for half in (0, len(first))])


def same_context(one: TokenBatch, other: TokenBatch) -> bool:
    """Whether two context batches are equal."""
    return one.sizes == other.sizes and torch.equal(one.x, other.x)


def guidance_scale(t: float, scale: float, power: float) -> float:
    """Returns the scale at time t by the power-cosine schedule of the authors' code.

    It falls from `scale` at t = 0 to 1 at t = 1; for power 0 it is constant.
    """
    return 1 + (scale - 1) * (1 - math.cos(math.pi * (1 - t) ** power)) / 2

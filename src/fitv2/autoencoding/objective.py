"""What an autoencoder minimises: absolute error, distance of features, and a small divergence of its latents."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .perceptual import PerceptualDistance


class Reconstruction(NamedTuple):
    """Reconstructions (B, 3, H, W) in about [-1, 1], and the parts of the loss of each image, (B,) float32.

    Attributes:
        l1: The mean absolute error.
        perceptual: See `PerceptualDistance`; 0 without one.
        kl: The divergence of the posterior from a standard normal distribution, mean over the latent numbers, in nats.
    """

    images: Tensor
    l1: Tensor
    perceptual: Tensor
    kl: Tensor


class Objective:
    """The weighted sum of the parts: L1 has the weight 1.

    Args:
        distance: None leaves out the perceptual part.
        bf16: Whether the networks compute under autocast.
    """

    def __init__(
        self, distance: PerceptualDistance | None, perceptual_weight: float, kl_weight: float, bf16: bool
    ) -> None:
        self.distance, self.bf16 = distance, bf16
        self.perceptual_weight, self.kl_weight = perceptual_weight, kl_weight

    def loss(self, parts: Reconstruction) -> Tensor:
        """Returns the loss of each image, (B,)."""
        return parts.l1 + self.perceptual_weight * parts.perceptual + self.kl_weight * parts.kl

    def reconstruct(self, network: Any, images: Tensor, generator: torch.Generator | None) -> Reconstruction:
        """Encodes and decodes images (B, 3, H, W) in [-1, 1] of one size.

        Args:
            network: An AutoencoderKL.
            images: On the network's device.
            generator: On the CPU, of the noise with which latents are drawn; None takes their means.
        """
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            posterior = network.encode(images).latent_dist
            mean, log_variance = posterior.mean.float(), posterior.logvar.float()
            latents = mean
            if generator is not None:
                noise = torch.randn(mean.shape, generator=generator).to(mean.device)
                latents = mean + (log_variance / 2).exp() * noise
            made = network.decode(latents).sample
            made = made.float()
            zero = made.new_zeros(len(made))
            perceptual = zero if self.distance is None else self.distance(made, images)
        l1 = (made - images).abs().mean((1, 2, 3))
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).mean((1, 2, 3)) / 2
        return Reconstruction(made, l1, perceptual, kl)

"""What an autoencoder minimises: absolute error, distance of features, and terms that make its latents easy to model.

Those are a small divergence from a normal distribution, and scale equivariance (arXiv 2502.14831): halved latents
should decode to the halved image, which leaves little in their high frequencies that is only noise to a flow.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from .perceptual import PerceptualDistance


class Reconstruction(NamedTuple):
    """Reconstructions (B, 3, H, W) in about [-1, 1], and the parts of the loss of each image, (B,) float32.

    Attributes:
        l1: The mean absolute error.
        perceptual: See `PerceptualDistance`; 0 without one.
        kl: The divergence of the posterior from a standard normal distribution, mean over the latent numbers, in nats.
        halved: The mean absolute error of halved latents decoded, against the halved images; 0 where it is not wanted.
    """

    images: Tensor
    l1: Tensor
    perceptual: Tensor
    kl: Tensor
    halved: Tensor


class Objective:
    """The weighted sum of the parts: L1 has the weight 1.

    Args:
        distance: None leaves out the perceptual part.
        perceptual_weight, kl_weight, halved_weight: Of the parts; 0 leaves one out.
        bf16: Whether the networks compute under autocast.
    """

    def __init__(
        self,
        distance: PerceptualDistance | None,
        perceptual_weight: float,
        kl_weight: float,
        halved_weight: float = 0.0,
        bf16: bool = False,
    ) -> None:
        self.distance, self.bf16 = distance, bf16
        self.perceptual_weight, self.kl_weight, self.halved_weight = perceptual_weight, kl_weight, halved_weight

    def loss(self, parts: Reconstruction) -> Tensor:
        """Returns the loss of each image, (B,)."""
        of_latents = self.kl_weight * parts.kl + self.halved_weight * parts.halved
        return parts.l1 + self.perceptual_weight * parts.perceptual + of_latents

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
            made = network.decode(latents).sample.float()
            perceptual = halved = made.new_zeros(len(made))
            if self.distance is not None:
                perceptual = self.distance(made, images)
            if self.halved_weight and min(latents.shape[2:]) > 1:
                halved = absolute_error(network.decode(avg_pool2d(latents, 2)).sample.float(), avg_pool2d(images, 2))
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).mean((1, 2, 3)) / 2
        return Reconstruction(made, absolute_error(made, images), perceptual, kl, halved)


def absolute_error(made: Tensor, images: Tensor) -> Tensor:
    """Returns the mean absolute error of each image, (B,)."""
    return (made - images).abs().mean((1, 2, 3))

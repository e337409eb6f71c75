"""What an autoencoder minimises: absolute error, distance of features, and terms that make its latents easy to model.

Those are a small divergence from a normal distribution, and scale equivariance (arXiv 2502.14831): halved latents
should decode to the halved image, which leaves little in their high frequencies that is only noise to a flow.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ..evaluation.extractors import efficientnet_lite0
from ..settings.autoencoder import AutoencoderTrainingSettings

# The last blocks at 1/2, 1/4, 1/8 and 1/16 of the sides: 16, 24, 40 and 112 channels.
BLOCKS = (0, 2, 4, 10)
EPSILON = 1e-8


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
    """The weighted sum of the parts: L1 has the weight 1, and the settings give the weights of the other parts."""

    def __init__(self, settings: AutoencoderTrainingSettings, device: torch.device) -> None:
        self.settings, self.bf16 = settings, settings.precision == "bf16"
        self.distance = PerceptualDistance(device) if settings.perceptual_weight else None

    def loss(self, parts: Reconstruction) -> Tensor:
        """Returns the loss of each image, (B,)."""
        weights = self.settings
        of_latents = weights.kl_weight * parts.kl + weights.halved_weight * parts.halved
        return parts.l1 + weights.perceptual_weight * parts.perceptual + of_latents

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
            if self.settings.halved_weight and min(latents.shape[2:]) > 1:
                halved = absolute_error(network.decode(avg_pool2d(latents, 2)).sample.float(), avg_pool2d(images, 2))
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).mean((1, 2, 3)) / 2
        return Reconstruction(made, absolute_error(made, images), perceptual, kl, halved)


def absolute_error(made: Tensor, images: Tensor) -> Tensor:
    """Returns the mean absolute error of each image, (B,)."""
    return (made - images).abs().mean((1, 2, 3))


class PerceptualDistance:
    """How different two images look: by features of EfficientNet-Lite0 at four scales.

    It is LPIPS (arXiv 1801.03924, Eq. 1) with another network and the weight 1 for every channel, where LPIPS has
    weights fitted to human judgements. FD-ENLite0 uses the same network, so it favours what was trained with this
    distance. Raises UserError if the packages of the network are not installed.
    """

    def __init__(self, device: torch.device) -> None:
        self.network = efficientnet_lite0().eval().to(device).requires_grad_(False)

    def __call__(self, images: Tensor, references: Tensor) -> Tensor:
        """Returns (B,) float32 in [0, 16] for images and references (B, 3, H, W) in [-1, 1].

        Only the images get a gradient. Each layer gives the mean over places of the squared distance of features of
        unit length, at most 4.
        """
        with torch.no_grad():
            known = list(self.features(references))
        layers = zip(self.features(images), known, strict=True)
        return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in layers]).sum(0)

    def features(self, images: Tensor) -> Iterator[Tensor]:
        """Yields float32 features (B, C, h, w), of unit length at each place."""
        network = self.network
        x = network._swish(network._bn0(network._conv_stem((images * 127.5 + 0.5) / 128)))
        for number, block in enumerate(network._blocks[: BLOCKS[-1] + 1]):
            x = block(x)
            if number in BLOCKS:
                full = x.float()
                yield full * (full.square().sum(1, keepdim=True) + EPSILON).rsqrt()

"""A small classifier of Fashion-MNIST items of any size, and the canvas that it sees them on.

The shipped weights are trained on the 60 000 training images by `tools/train_classifier.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn

from ..data.fashion import CLASS_NAMES, SIDE
from ..errors import UserError

WEIGHTS = files("fitv2.evaluation").joinpath("garment-classifier.safetensors")
WIDTHS = (32, 64, 128)
FEATURES = 64
# Layers of the trunk up to 7 x 7 places.
SPATIAL_LAYERS = 12


class GarmentClassifier(nn.Module):
    """Three convolutional stages that each halve the sides, a mean over places, 64 features and 10 logits.

    About 296 thousand parameters. The classes are those of `fitv2.data.fashion`.
    """

    def __init__(self) -> None:
        super().__init__()
        small, middle, large = WIDTHS
        self.trunk = nn.Sequential(
            *convolution(1, small, kernel=5, stride=2),
            *convolution(small, small),
            *convolution(small, middle, stride=2),
            *convolution(middle, middle),
            *convolution(middle, large, stride=2),
            *convolution(large, large),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(large, FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(FEATURES, len(CLASS_NAMES)))

    def forward(self, x: Tensor) -> Tensor:
        """Takes what `canvas` makes, (B, 1, 28, 28) in [-1, 1]; returns logits (B, 10)."""
        return self.head(self.trunk(x))


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """Returns a convolution, its normalisation and its activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


def load_classifier() -> GarmentClassifier:
    """Returns the shipped classifier, in float32 and eval mode."""
    classifier = GarmentClassifier()
    weights = load(WEIGHTS.read_bytes())
    classifier.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    return classifier.eval()


def canvas(latents: Sequence[Tensor]) -> Tensor:
    """Returns grey images, each centred on black, as (B, 1, 28, 28).

    Each image is scaled so that its longer side is 28, with its aspect kept to the nearest whole pixel (antialiased
    bicubic). Nearly all real items have a side of 28, so one made at half or twice that size is judged by its shape.

    Args:
        latents: (1, h, w) each, in [-1, 1]; values beyond are clipped.

    Raises:
        UserError: An image has another number of channels, or values that are not finite.
    """
    page = torch.full((len(latents), 1, SIDE, SIDE), -1.0)
    for i, latent in enumerate(latents):
        if latent.ndim != 3 or len(latent) != 1:
            raise UserError(f"a grey image is (1, h, w), not {tuple(latent.shape)}")
        if not latent.isfinite().all():
            raise UserError(f"image {i} of {len(latents)} has values that are not finite")
        fitted = fit(latent.float().clamp(-1, 1))
        h, w = fitted.shape[1:]
        top, left = (SIDE - h) // 2, (SIDE - w) // 2
        page[i, :, top : top + h, left : left + w] = fitted
    return page


def fit(latent: Tensor) -> Tensor:
    """Scales (1, h, w) to a longer side of 28, in [-1, 1]."""
    longer = max(latent.shape[1:])
    if longer == SIDE:
        return latent
    size = [max(1, round(side * SIDE / longer)) for side in latent.shape[1:]]
    return F.interpolate(latent[None], size, mode="bicubic", antialias=True)[0].clamp(-1, 1)


@torch.inference_mode()
def examine(classifier: GarmentClassifier, latents: Sequence[Tensor], batch: int = 500) -> tuple[Tensor, Tensor]:
    """Returns features (N, 64) float32 and recognised classes (N,) int64 of images (1, h, w) in [-1, 1]."""
    blocks = [canvas(latents[i : i + batch]) for i in range(0, len(latents), batch)]
    features = torch.cat([classifier.trunk(block) for block in blocks])
    return features, classifier.head(features).argmax(1)

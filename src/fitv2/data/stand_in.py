"""A stand-in for ImageNet where only the sizes of its images matter: for planning a training before the data is here.

Not measured but drawn after what is known of ImageNet: 60 % of the images have a long side of 500 pixels and a
camera's aspect (4:3, 3:4, 3:2, 2:3 or square, give or take 2 %); the others have any aspect (log-normal around 1.1,
deviation 0.35) and area (log-normal around 350x300 pixels, deviation 0.7).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..errors import UserError
from ..randomness import Purpose, numpy_generator
from .dataset import Dataset
from .preprocessing import variant_sizes

IMAGES, CLASSES = 1_281_167, 1000
# Of the autoencoder of Stable Diffusion, with which FiT and FiTv2 were trained.
FACTOR, CHANNELS, PATCH = 8, 4, 2
# Sizes are drawn for this many images, then repeated: enough for a plan, and quick.
DRAWN = 20_000
ASPECTS, SHARES = (4 / 3, 3 / 4, 3 / 2, 2 / 3, 1.0), (0.45, 0.2, 0.2, 0.07, 0.08)


def image_sizes(number: int, seed: int = 0) -> np.ndarray:
    """Draws (number, 2) int64 heights and widths in pixels, as the module says."""
    rng = numpy_generator(Purpose.VARIANTS, seed)
    camera = rng.choice(ASPECTS, number, p=SHARES) * np.exp(rng.normal(0, 0.02, number))
    other = np.exp(rng.normal(np.log(1.1), 0.35, number))
    area = np.exp(rng.normal(np.log(350 * 300), 0.7, number))
    from_camera = rng.random(number) < 0.6
    aspect = np.where(from_camera, camera, other)
    area = np.where(from_camera, 500**2 * np.minimum(camera, 1 / camera), area)
    return np.rint(np.sqrt(np.stack((area / aspect, area * aspect), 1))).astype(np.int64)


class ImageNetLike(Dataset):
    """Latents of ImageNet as far as sizes go: plans, and never loads. Mixed preprocessing (Algorithm 1)."""

    patch_size, channels, num_classes, factor = PATCH, CHANNELS, CLASSES, FACTOR
    class_names: Sequence[str] = ()

    def __init__(self, max_tokens: int, number: int = IMAGES) -> None:
        patch, repeated = PATCH * FACTOR, np.arange(number) % DRAWN
        sizes, possible = variant_sizes(image_sizes(min(DRAWN, number)), max_tokens, patch, "mixed")
        self.variant_hw, self.possible = (sizes // patch)[repeated], possible[repeated]
        self.labels = np.arange(number) % CLASSES

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"variant": rng.integers(0, 2, len(self)) / 2}

    def load(self, index: int, variant: int, hw: object, flip: bool, rng: object) -> Tensor:
        raise UserError("these images stand in for ImageNet's sizes only; prepare the real ones: fitv2 prepare")

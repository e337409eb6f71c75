"""Images that an autoencoder is measured on and never trained on, and the sheet that shows them."""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.crops import Crops
from ..data.dataset import evenly
from ..data.formats import UnreadableImage
from ..images.sheets import contact_sheet, save_sheet, to_image
from .learner import Learner

logger = logging.getLogger(__name__)
# Images that are measured at most, and images on a sheet, each beside its reconstruction.
MOST, SHOWN = 128, 16


def squared_errors(images: Tensor, references: Tensor) -> Tensor:
    """Returns the mean squared error of each image (B, 3, H, W) in [-1, 1], as for values in [0, 1]: (B,) float32."""
    return (images.clamp(-1, 1) - references).square().mean((1, 2, 3)) / 4


class HeldOut:
    """The first crop of each held-out image, as the first epoch of seed 0 has it; the same in every run."""

    def __init__(self, crops: Crops) -> None:
        self.crops, self.view = crops, crops.epoch(0, 0)

    @cached_property
    def images(self) -> list[Tensor]:
        """The crops, (3, h, w) in [-1, 1], at most `MOST`, spread evenly. One that cannot be read is left out."""
        return self.read(self.crops.measured[evenly(len(self.crops.measured), MOST)])

    def figures(self, learner: Learner) -> dict[str, float]:
        """Returns the mean loss and the mean PSNR (dB) by the averaged weights; empty without images."""
        if not self.images:
            return {}
        found = []
        with learner.averaged():
            # As many at once as a step has: all of them would take more memory than the training.
            for images in torch.stack(self.images).split(learner.settings.batch_size):
                made = learner.reconstruct(images)
                psnr = -10 * squared_errors(made.images.cpu(), images).clamp(min=1e-10).log10()
                found.append(torch.stack([learner.objective.loss(made).cpu(), psnr]))
        return dict(zip(("holdout_loss", "holdout_psnr"), torch.cat(found, 1).mean(1).tolist(), strict=True))

    def write_sheet(self, path: Path, learner: Learner) -> None:
        """Draws held-out images, or images of the training if none are held out, each beside its reconstruction."""
        chosen = self.crops.measured if len(self.crops.measured) else np.arange(len(self.crops))
        drawn = []
        with learner.averaged():
            for image in self.read(chosen[evenly(len(chosen), SHOWN)]):
                made = learner.reconstruct(image[None]).images[0]
                drawn += [to_image(image), to_image(made.cpu())]
        if drawn:
            captions = ["image", "reconstruction"] * (len(drawn) // 2)
            save_sheet(contact_sheet(drawn, captions), path)

    def read(self, indices: np.ndarray) -> list[Tensor]:
        """Returns crops; one that cannot be read is left out, and the log says so."""
        found = []
        for index in indices.tolist():
            try:
                found.append(self.view.load(index))
            except UnreadableImage as error:
                logger.warning("not measured: %s", error)
        return found

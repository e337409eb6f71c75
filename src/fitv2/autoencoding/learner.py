"""An autoencoder with everything that learning changes: gradients of crops, the optimiser, averaged weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from ..autoencoder_settings import AutoencoderRecipe
from ..checkpoints.training_state import restore
from ..errors import UserError
from ..randomness import Purpose, seed_of
from ..tokens import upload
from ..training.ema import EMA
from ..training.learner import learning_rate
from ..training.optimizer import Optimizer
from .network import build_autoencoder
from .objective import Objective, Reconstruction, by_size
from .perceptual import PerceptualDistance

# What the log has of every step.
PARTS = ("loss", "l1", "perceptual", "kl")


class Update(NamedTuple):
    """What a step reports: means over its images by name (`PARTS`), and the norm of the gradient before clipping."""

    parts: dict[str, float]
    grad_norm: float


class Learner:
    """An autoencoder in training on a device, with random weights of the recipe's seed."""

    def __init__(self, recipe: AutoencoderRecipe, device: torch.device) -> None:
        settings = recipe.training
        self.settings, self.device = settings, device
        torch.manual_seed(seed_of(Purpose.WEIGHTS, settings.seed))
        self.network = build_autoencoder(recipe.model)
        torch.nn.Module.to(self.network, device)
        self.parameters: dict[str, Tensor] = dict(self.network.named_parameters())
        self.optimizer = Optimizer(self.parameters, settings.learning_rate, settings.beta2)
        self.ema = EMA(self.network, settings.ema_decay)
        distance = PerceptualDistance(device) if settings.perceptual_weight else None
        weights = settings.perceptual_weight, settings.kl_weight
        self.objective = Objective(distance, *weights, bf16=settings.precision == "bf16")

    def step(self, images: Sequence[Tensor], number: int, generator: torch.Generator) -> Update:
        """Trains step `number`, counted from 0, on crops (3, h, w); a gradient that is not finite changes nothing.

        generator: Of the noise of the latents.
        """
        total = torch.zeros(len(PARTS), device=self.device)
        for batch in by_size(images):
            parts = self.objective.reconstruct(self.network, upload(batch, self.device), generator)
            loss = self.objective.loss(parts)
            (loss.sum() / len(images)).backward()
            total += torch.stack([part.detach().sum() for part in (loss, *parts[1:])]) / len(images)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.max_grad_norm)
        finite = norm.isfinite()
        self.optimizer.step(learning_rate(number, self.settings), finite)
        self.ema.update(self.network, number, finite)
        return Update(dict(zip(PARTS, total.tolist(), strict=True)), float(norm))

    @torch.no_grad()
    def reconstruct(self, images: Sequence[Tensor]) -> Iterator[tuple[Tensor, Reconstruction]]:
        """Yields batches of equal sizes with what the network makes of their latents' means."""
        for batch in by_size(images):
            batch = upload(batch, self.device)
            yield batch, self.objective.reconstruct(self.network, batch, None)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Gives the network its averaged weights for a with block."""
        with self.ema.applied_to(self.network):
            yield

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of a checkpoint: "model", "ema" and "optimizer"."""
        return {"model": self.parameters, "ema": self.ema.average, "optimizer": self.optimizer.tensors()}

    def restore(self, checkpoint: Path) -> None:
        """Restores the tensors from a checkpoint. Raises UserError where they are damaged or do not fit."""
        restore(checkpoint, "model", self.parameters, partial(load_weights, self.network))
        restore(checkpoint, "ema", self.parameters, self.ema.load)
        restore(checkpoint, "optimizer", self.parameters, self.optimizer.load)


def load_weights(network: AutoencoderKL, weights: dict[str, Tensor]) -> None:
    """Loads all weights of a network. Raises UserError if one is missing, unknown or of another shape."""
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError("they are weights of another autoencoder: " + " ".join(str(error).split())[:200]) from None

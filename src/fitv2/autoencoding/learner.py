"""An autoencoder with everything that learning changes: gradients of crops, the optimiser, averaged weights."""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from ..errors import UserError
from ..model.network import misfits
from ..randomness import Purpose, seed_of
from ..settings.autoencoder import AutoencoderRecipe, AutoencoderTrainingSettings
from ..tokens import upload
from ..training.learner import BaseLearner
from ..training.optimizer import Optimizer
from .network import build_autoencoder
from .objective import Objective, Reconstruction

# What the log has of every step.
PARTS = ("loss", "l1", "perceptual", "kl", "halved")
# What a configuration has that changes results and no weight's shape.
COMPUTING = "norm_num_groups", "act_fn"
# What the names of the decoder's parameters begin with.
DECODER = "decoder.", "post_quant_conv."


class Learner(BaseLearner):
    """An autoencoder in training on a device.

    base: The autoencoder whose weights training begins with; None: random ones of the recipe's seed.
    """

    network: AutoencoderKL
    settings: AutoencoderTrainingSettings

    def __init__(self, recipe: AutoencoderRecipe, device: torch.device, base: AutoencoderKL | None = None) -> None:
        settings, self.device = recipe.training, device
        torch.manual_seed(seed_of(Purpose.WEIGHTS, settings.seed))
        network = build_autoencoder(recipe.model)
        if base is not None:
            weights = base.state_dict()
            other = [key for key in COMPUTING if network.config[key] != base.config.get(key)]
            if other or misfits(network, weights):
                raise UserError(
                    f"training.init_from={settings.init_from} is an autoencoder of other settings"
                    f"{' (' + ', '.join(other) + ')' if other else ''}: give those of its config.json, as in --set "
                    "model.latent_channels=4"
                )
            network.load_state_dict(weights)
        torch.nn.Module.to(network, device)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(settings.trainable == "all" or name.startswith(DECODER))
        trained = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        optimizer = Optimizer(trained, settings.learning_rate, settings.beta2)
        super().__init__(network, settings, optimizer)
        self.objective = Objective(settings, device)

    def backward(self, images: list[Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Accumulates the gradient of crops (3, h, w) of one size; returns the means of `PARTS` over them, () float32.

        generator: Of the noise of the latents.
        """
        parts = self.objective.reconstruct(self.network, upload(torch.stack(images), self.device), generator)
        loss = self.objective.loss(parts)
        (loss.sum() / len(images)).backward()
        means = torch.stack([part.detach().sum() for part in (loss, *parts[1:])]) / len(images)
        return dict(zip(PARTS, means, strict=True))

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Reconstruction:
        """Returns what the network makes of the means of the images' latents; images: (B, 3, h, w)."""
        return self.objective.reconstruct(self.network, upload(images, self.device), None)

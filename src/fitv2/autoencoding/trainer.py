"""The training of an autoencoder: logged, checkpointed, resumable (on a CPU bit for bit), like that of a flow.

No global random state is used after the start: the crops follow from (seed, epoch), the noise from (seed, step).
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.model_folder import VAE
from ..checkpoints.training_state import newest_state
from ..data.crops import Crops
from ..data.dataset import Dataset, evenly
from ..data.loader import PackLoader, StepData
from ..distributed.ranks import Ranks
from ..errors import UserError
from ..images.autoencoder import LatentCodec, load_autoencoder
from ..randomness import Purpose, torch_generator
from ..settings.autoencoder import AutoencoderRecipe
from ..tokens import upload
from ..training.holdout import choose_held_out
from ..training.loop import TrainingLoop
from ..training.run_folder import check_held_out, held_out_digest
from ..training.watch import DataGone
from .holdout import HeldOut
from .learner import Learner
from .network import latent_statistics, write_autoencoder

# Crops that the mean and the standard deviation of the latents are measured on.
MEASURED = 256


class AutoencoderTrainer(TrainingLoop[AutoencoderRecipe]):
    """A run in a folder: recipe.json, log.jsonl, checkpoints/, samples/ and vae/.

    Training continues from the newest checkpoint in the folder, if there is one.

    Args:
        sources: The sets of images, in patches of the autoencoder's factor.
        ranks: One process.

    Raises:
        UserError: The checkpoint is damaged, or is of other images; the autoencoder of `init_from` cannot be loaded or
            has other settings; or a package is missing.
    """

    command, exports = "autoencoder", VAE
    learner: Learner

    def __init__(self, recipe: AutoencoderRecipe, sources: list[Dataset], run: Path, ranks: Ranks) -> None:
        super().__init__(recipe, run, ranks)
        recipe, settings = self.recipe, self.recipe.training
        held_out = [choose_held_out(source, settings.holdout) for source in sources]
        self.crops = Crops(sources, recipe.data.crop // recipe.model.factor, held_out)
        self.content, self.sources = self.crops.digest(), ", ".join(recipe.data.sources)
        self.sheet_every = recipe.log.sheet_every
        self.begun = newest_state(run / "checkpoints")
        if self.begun is not None and self.begun[1].get("content") != self.content:
            raise UserError(
                f"the images of {self.sources} are not those on which {run} was trained: restore "
                "them, or begin another run"
            )
        self.held = held_out_digest(self.crops.held_out)
        if self.begun is not None:
            check_held_out(self.begun[1], self.held)
        base = load_autoencoder(None if self.begun else settings.init_from)
        # Models of latents know the scale of a fixed encoder: it must not be measured again on other images.
        self.scale: list[list[float]] | None = self.begun[1].get("scale") if self.begun else None
        if isinstance(base, LatentCodec) and settings.trainable == "decoder":
            self.scale = [base.shift.flatten().tolist(), (1 / base.scale.flatten()).tolist()]
        network = base.network if isinstance(base, LatentCodec) else None
        self.learner, self.held_out = Learner(recipe, ranks.device, network), HeldOut(self.crops)
        tokens = settings.batch_size * self.crops.side**2
        held = self.crops.held_out
        self.loader = PackLoader(self.crops, tokens, 1, settings.seed, workers=settings.workers, held_out=held)

    def begin(self) -> None:
        # While the images are there: `export` has to know the scale of their latents.
        if self.progress.unfinished and self.scale is None and not self.measured:
            raise self.progress.gone(DataGone("no image can be read"), self.sources)

    def measure(self) -> dict[str, float]:
        return self.held_out.figures(self.learner) if self.progress.is_due(self.recipe.log.holdout_every) else {}

    def write_sheet(self) -> None:
        self.held_out.write_sheet(self.progress.sheet, self.learner)

    def backward(self, step: StepData, images: int) -> dict[str, Tensor]:
        """Returns the parts of the loss; a token of the step is a latent pixel."""
        generator = torch_generator(Purpose.TRAINING, self.recipe.training.seed, self.progress.done)
        return self.learner.backward(step.packs[0].batch.to_latents(self.crops.patch_size), generator)

    def state(self) -> dict[str, Any]:
        """Returns digests of the images and of those held out, and the scale of the latents if it is fixed."""
        return {"content": self.content, "scale": self.scale, "held_out": self.held}

    def export(self, folder: Path) -> None:
        """Writes the averaged weights for diffusers, with the scale of their latents."""
        mean, std = self.scale or self.measure_scale()
        write_autoencoder(folder, self.learner.network, self.learner.ema.average, mean, std)

    def measure_scale(self) -> list[list[float]]:
        """Returns mean and standard deviation of the latents of each channel, see `latent_statistics`."""
        with self.learner.averaged():
            batches = (upload(batch, self.ranks.device) for batch in self.measured)
            return [figures.tolist() for figures in latent_statistics(self.learner.network, batches)]

    @cached_property
    def measured(self) -> list[Tensor]:
        """Crops of the training, as the first epoch of seed 0 has them, in batches; read once, while they are there."""
        trained = np.delete(np.arange(len(self.crops)), self.crops.held_out)
        images = self.held_out.read(trained[evenly(len(trained), MEASURED)])
        return list(torch.stack(images).split(self.recipe.training.batch_size)) if images else []

"""The training of an autoencoder: logged, checkpointed, resumable (on a CPU bit for bit), like that of a flow.

No global random state is used after the start: the crops follow from (seed, epoch), the noise from (seed, step).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..autoencoder import LatentCodec, load_autoencoder
from ..autoencoder_settings import AutoencoderRecipe
from ..checkpoints.model_folder import VAE
from ..checkpoints.training_state import newest_state, prune, save_checkpoint
from ..data.crops import Crops
from ..data.dataset import Dataset, evenly
from ..data.loader import PackLoader, Step
from ..device import choose_precision
from ..errors import UserError
from ..randomness import Purpose, torch_generator
from ..tokens import upload
from ..training.holdout import choose_held_out
from ..training.log import RunLog
from ..training.progress import Progress
from ..training.run_folder import exported, keep_provenance, keep_recipe, resume_command
from ..training.trackers import check_packages
from ..training.watch import DataGone
from .held_out import HeldOut
from .learner import Learner
from .network import latent_statistics, write_autoencoder

# Crops that the mean and the standard deviation of the latents are measured on.
MEASURED = 256


class AutoencoderTrainer:
    """A run in a folder: recipe.json, log.jsonl, checkpoints/, samples/ and vae/.

    Training continues from the newest checkpoint in the folder, if there is one.

    Args:
        recipe: With its precision decided.
        sources: The sets of images, in patches of the autoencoder's factor.

    Attributes:
        begun: The checkpoint, and its state.json, from which training continues.
        progress: How far the run is.

    Raises:
        UserError: The checkpoint is damaged, or is of other images; the autoencoder of `init_from` cannot be loaded or
            has other settings; or a package is missing.
    """

    def __init__(self, recipe: AutoencoderRecipe, sources: list[Dataset], run: Path, device: torch.device) -> None:
        check_packages(recipe.log.trackers)
        assert recipe.training.precision != "auto"
        choose_precision(recipe.training.precision, device)  # It warns where bf16 is slow.
        settings, self.recipe, self.run, self.device = recipe.training, recipe, run, device
        held_out = [choose_held_out(source, settings.holdout) for source in sources]
        self.crops = Crops(sources, recipe.data.crop // recipe.model.factor, held_out)
        self.content = self.crops.digest()
        self.begun = newest_state(run / "checkpoints")
        if self.begun is not None and self.begun[1].get("content") != self.content:
            raise UserError(
                f"the images of {', '.join(recipe.data.sources)} are not those on which {run} was trained: restore "
                "them, or begin another run"
            )
        base = load_autoencoder(None if self.begun else settings.init_from)
        # Models of latents know the scale of a fixed encoder: it must not be measured again on other images.
        self.scale: list[list[float]] | None = self.begun[1].get("scale") if self.begun else None
        if isinstance(base, LatentCodec) and settings.trainable == "decoder":
            self.scale = [base.shift.flatten().tolist(), (1 / base.scale.flatten()).tolist()]
        network = base.network if isinstance(base, LatentCodec) else None
        self.learner, self.held_out = Learner(recipe, device, network), HeldOut(self.crops)
        tokens = settings.batch_size * self.crops.side**2
        held = self.crops.held_out
        self.loader = PackLoader(self.crops, tokens, 1, settings.seed, workers=settings.workers, held_out=held)
        self.progress = Progress(run, settings.steps, resume_command(run, "autoencoder"))

    def fit(self, report: Callable[[dict[str, Any]], None]) -> None:
        """Trains to the last step, or to the one during which Ctrl-C or SIGTERM comes; `report` gets each log line.

        Raises:
            DataGone: The images cannot be read any more; the last step is saved.
            Diverged: No gradient is finite any more.
        """
        progress, settings = self.progress, self.recipe.log
        with progress.termination:
            self.resume()
            progress.check_exports(settings.export_at)
            log = RunLog(self.run, progress.done, self.recipe, self.device)
            if progress.unfinished and self.scale is None and not self.measured:
                raise progress.gone(DataGone("no image can be read"), ", ".join(self.recipe.data.sources))
            if progress.unfinished:
                keep_recipe(self.run, self.recipe)
            keep_provenance(self.run, progress.done, self.content)
            # The previous run may have stopped between writing its checkpoint and its sheet.
            if progress.is_due(settings.sheet_every) and not progress.sheet.exists():
                self.held_out.write_sheet(progress.sheet, self.learner)
            steps = self.loader.steps(progress.cursor)
            try:
                for figures in self.timed_steps(steps):
                    if progress.is_due(settings.holdout_every):
                        figures |= self.held_out.figures(self.learner)
                    log.write(figures)
                    report(figures)
                    if progress.done in settings.export_at:
                        self.export(exported(self.run, progress.done))
                    if progress.stopping or progress.is_due(settings.checkpoint_every):
                        self.save()
                    if progress.is_due(settings.sheet_every) and not progress.stopping:
                        self.held_out.write_sheet(progress.sheet, self.learner)
            except DataGone as error:
                if progress.done > progress.saved:
                    self.save(keep=None)
                raise progress.gone(error, ", ".join(self.recipe.data.sources)) from None
            finally:
                steps.close()
                log.close()

    def timed_steps(self, steps: Iterator[Step]) -> Iterator[dict[str, Any]]:
        """Trains step by step and yields the figures of each, as those of a flow; a token is a latent pixel."""
        progress = self.progress
        progress.start_clock()
        while progress.unfinished:
            figures: dict[str, Any] = {}
            with progress.timed(figures, self.device.type == "cpu"):
                figures |= self.step(next(steps))
            if progress.unfinished:
                progress.stopped_by = progress.termination.asked
            yield figures

    def step(self, step: Step) -> dict[str, Any]:
        """Trains one step and returns its figures; raises DataGone and Diverged as `fit` does."""
        readable, progress = sum(step.readable), self.progress
        progress.images_read.check(readable, step.unreadable, int(step.unreadable > 0 and self.loader.is_gone()))
        generator = torch_generator(Purpose.TRAINING, self.recipe.training.seed, progress.done)
        update = self.learner.step(step.packs[0].batch.to_latents(self.crops.patch_size), progress.done, generator)
        progress.done, progress.cursor = progress.done + 1, step.after
        progress.gradients.check(progress.done, update.grad_norm)
        return {
            "step": progress.done,
            "epoch": progress.cursor.epoch,
            **update.parts,
            "grad_norm": update.grad_norm,
            "learning_rate": self.learner.optimizer.learning_rate,
            "images": readable,
            "tokens": step.tokens,
            "skipped": progress.gradients.skipped,
            "skipped_images": progress.images_read.skipped,
        }

    def save(self, keep: int | None = 0) -> None:
        """Writes the autoencoder and a checkpoint, and removes older ones. Raises OSError.

        keep: the number of checkpoints that stay; 0: as the recipe says; None: all.
        """
        folder = self.run / "checkpoints"
        with self.progress.saving():
            # The autoencoder first: a run killed in between repeats the step, and writes it again.
            self.export(self.run / VAE)
            state = {"content": self.content, "scale": self.scale} | self.progress.state()
            save_checkpoint(folder, self.progress.done, self.learner.parts(), state)
        self.progress.saved = self.progress.done
        if keep is not None:
            prune(folder, keep or self.recipe.log.keep_checkpoints)

    def export(self, folder: Path) -> None:
        """Writes the averaged weights for diffusers, with the scale of their latents."""
        mean, std = self.scale or self.measure_scale()
        write_autoencoder(folder, self.learner.network, self.learner.ema.average, mean, std)

    def measure_scale(self) -> list[list[float]]:
        """Returns mean and standard deviation of the latents of each channel, see `latent_statistics`."""
        with self.learner.averaged():
            batches = (upload(batch, self.device) for batch in self.measured)
            return [figures.tolist() for figures in latent_statistics(self.learner.network, batches)]

    @cached_property
    def measured(self) -> list[Tensor]:
        """Crops of the training, as the first epoch of seed 0 has them, in batches; read once, while they are there."""
        trained = np.delete(np.arange(len(self.crops)), self.crops.held_out)
        images = self.held_out.read(trained[evenly(len(trained), MEASURED)])
        return list(torch.stack(images).split(self.recipe.training.batch_size)) if images else []

    def resume(self) -> None:
        """Restores weights, averages, moments and the position in the data from the newest checkpoint, if any."""
        if self.begun is not None:
            self.learner.restore(self.begun[0])
            self.progress.restore(*self.begun)

"""The training of an autoencoder: logged, checkpointed, resumable (on a CPU bit for bit), like that of a flow.

No global random state is used after the start: the crops follow from (seed, epoch), the noise from (seed, step).
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import randomness
from ..autoencoder_settings import AutoencoderRecipe
from ..checkpoints.training_state import damaged, newest_state, prune, save_checkpoint
from ..data.crops import Crops
from ..data.dataset import Dataset
from ..data.loader import DataCursor, PackLoader, Step
from ..device import choose_precision
from ..errors import UserError
from ..randomness import Purpose, torch_generator
from ..tokens import upload
from ..training.holdout import choose_held_out
from ..training.log import RunLog
from ..training.malloc_trim import trim_heap
from ..training.run_folder import exported, keep_provenance, keep_recipe
from ..training.sigterm import SigtermHandler
from ..training.trackers import check_packages
from ..training.watch import DataGone, DataWatch, GradientWatch
from .held_out import HeldOut, spread
from .learner import Learner
from .network import latent_statistics, write_autoencoder
from .objective import by_size

logger = logging.getLogger(__name__)
# The folder of the autoencoder in that of a run, as in a pipeline of diffusers.
EXPORT = "vae"
# Crops that the mean and the standard deviation of the latents are measured on.
MEASURED = 256


class AutoencoderTrainer:
    """A run in a folder: recipe.json, log.jsonl, checkpoints/, samples/ and vae/.

    Training continues from the newest checkpoint in the folder, if there is one.

    Args:
        recipe: With its precision decided.
        sources: The sets of images, in patches of the autoencoder's factor.

    Attributes:
        done: The number of steps that are trained.
        begun: The checkpoint, and its state.json, from which training continues.
        stopped_by: The signal that ended training before its last step, which is saved.

    Raises:
        UserError: The checkpoint is damaged, or is of other images; or a package is missing.
    """

    def __init__(self, recipe: AutoencoderRecipe, sources: list[Dataset], run: Path, device: torch.device) -> None:
        check_packages(recipe.log.trackers)
        assert recipe.training.precision != "auto"
        choose_precision(recipe.training.precision, device)  # It warns where bf16 is slow.
        settings, self.recipe, self.run, self.device = recipe.training, recipe, run, device
        held_out = [
            choose_held_out(len(source), settings.holdout) if source.held_out is None else source.held_out
            for source in sources
        ]
        self.crops = Crops(sources, recipe.data.crop // recipe.model.factor, held_out)
        self.content = self.crops.digest()
        self.begun = newest_state(run / "checkpoints")
        if self.begun is not None and self.begun[1].get("content") != self.content:
            raise UserError(
                f"the images of {', '.join(recipe.data.sources)} are not those on which {run} was trained: restore "
                "them, or begin another run"
            )
        self.learner, self.held_out = Learner(recipe, device), HeldOut(self.crops)
        tokens = settings.batch_size * self.crops.side**2
        held = self.crops.held_out
        self.loader = PackLoader(self.crops, tokens, 1, settings.seed, workers=settings.workers, held_out=held)
        self.done, self.cursor, self.seconds = 0, DataCursor(), 0.0
        self.gradients, self.images_read = GradientWatch(), DataWatch()
        told = "saving the current step, then stopping; press Ctrl-C again to stop at once without saving"
        self.termination = SigtermHandler(signal.SIGINT, signal.SIGTERM, told=told)
        self.stopped_by: signal.Signals | None = None

    def fit(self, report: Callable[[dict[str, Any]], None]) -> None:
        """Trains to the last step, or to the one during which Ctrl-C or SIGTERM comes; `report` gets each log line.

        Raises:
            DataGone: The images cannot be read any more; the last step is saved.
            Diverged: No gradient is finite any more.
        """
        with self.termination:
            self.resume()
            log = RunLog(self.run, self.done, self.recipe, self.device)
            if self.done < self.recipe.training.steps:
                keep_recipe(self.run, self.recipe)
            keep_provenance(self.run, self.done, self.content)
            if self.sheet_is_due() and not self.sheet.exists():  # The run stopped between its checkpoint and its sheet.
                self.held_out.write_sheet(self.sheet, self.learner)
            steps = self.loader.steps(self.cursor)
            try:
                for figures in self.timed_steps(steps):
                    if self.is_due(self.recipe.log.holdout_every):
                        figures |= self.held_out.figures(self.learner)
                    log.write(figures)
                    report(figures)
                    if self.done in self.recipe.log.export_at:
                        self.export(exported(self.run, self.done))
                    if self.stopped_by is not None or self.is_due(self.recipe.log.checkpoint_every):
                        self.save()
                    if self.sheet_is_due() and self.stopped_by is None:
                        self.held_out.write_sheet(self.sheet, self.learner)
            except DataGone as error:
                if self.done:
                    self.save()
                raise DataGone(
                    f"{error}; step {self.done} is saved. When the images are back, resume the run"
                ) from None
            finally:
                steps.close()
                log.close()

    def timed_steps(self, steps: Iterator[Step]) -> Iterator[dict[str, Any]]:
        """Trains step by step and yields the figures of each, as those of a flow; a token is a latent pixel."""
        clock = time.perf_counter()
        while self.done < self.recipe.training.steps and self.stopped_by is None:
            start, cpu_start = time.perf_counter(), time.process_time()
            step = next(steps)
            figures = self.step(step)
            end, cpu_seconds = time.perf_counter(), time.process_time() - cpu_start
            self.seconds += end - clock
            clock = end
            if self.device.type == "cpu":
                trim_heap(self.done)
            if self.done < self.recipe.training.steps:
                self.stopped_by = self.termination.asked
            yield figures | {
                "tokens_per_second": step.tokens / (end - start),
                "seconds": round(self.seconds, 3),
                "cpu_seconds": round(cpu_seconds, 4),
            }

    def step(self, step: Step) -> dict[str, Any]:
        """Trains one step and returns its figures; raises DataGone and Diverged as `fit` does."""
        readable = sum(step.readable)
        self.images_read.check(readable, step.unreadable, int(step.unreadable > 0 and self.loader.is_gone()))
        generator = torch_generator(Purpose.TRAINING, self.recipe.training.seed, self.done)
        update = self.learner.step(step.packs[0].batch.to_latents(self.crops.patch_size), self.done, generator)
        self.done, self.cursor = self.done + 1, step.after
        self.gradients.check(self.done, update.grad_norm)
        return {
            "step": self.done,
            "epoch": self.cursor.epoch,
            **update.parts,
            "grad_norm": update.grad_norm,
            "learning_rate": self.learner.optimizer.learning_rate,
            "images": readable,
            "tokens": step.tokens,
            "skipped": self.gradients.skipped,
            "skipped_images": self.images_read.skipped,
        }

    def is_due(self, every: int) -> bool:
        """Whether this step is one in `every`, or the last."""
        return self.done % every == 0 or self.done == self.recipe.training.steps

    def sheet_is_due(self) -> bool:
        every = self.recipe.log.sheet_every
        return every is not None and self.done > 0 and self.is_due(every)

    @property
    def sheet(self) -> Path:
        """The path of this step's sheet."""
        return self.run / "samples" / f"step-{self.done:08d}.png"

    def save(self) -> None:
        """Writes the autoencoder and a checkpoint. Raises OSError."""
        # The autoencoder first: a run killed in between repeats the step, and writes it again.
        self.export(self.run / EXPORT)
        self.save_checkpoint()

    def save_checkpoint(self) -> None:
        """Writes a checkpoint and removes older ones. Raises OSError."""
        folder = self.run / "checkpoints"
        state = {
            "content": self.content,
            "position": asdict(self.cursor),
            "skipped": self.gradients.skipped,
            "skipped_images": self.images_read.skipped,
            "seconds": self.seconds,
            "randomness": randomness.VERSION,
        }
        save_checkpoint(folder, self.done, self.learner.parts(), state)
        prune(folder, self.recipe.log.keep_checkpoints)

    def export(self, folder: Path) -> None:
        """Writes the averaged weights for diffusers, with the scale of their latents."""
        with self.learner.averaged():
            batches = (upload(batch, self.device) for batch in self.measured)
            mean, std = latent_statistics(self.learner.network, batches)
        write_autoencoder(folder, self.learner.network, self.learner.ema.average, mean, std)

    @cached_property
    def measured(self) -> list[Tensor]:
        """Crops of the training, as the first epoch of seed 0 has them, in batches of one size."""
        trained = np.delete(np.arange(len(self.crops)), self.crops.held_out)
        images = self.held_out.read(spread(trained, MEASURED))
        size = self.recipe.training.batch_size
        return [part for batch in by_size(images) for part in batch.split(size)]

    def resume(self) -> None:
        """Restores weights, averages, moments and the position in the data from the newest checkpoint, if any."""
        if self.begun is None:
            return
        newest, state = self.begun
        self.learner.restore(newest)
        try:
            self.done, self.cursor = int(state["step"]), DataCursor(**state["position"])
            self.gradients.skipped, self.seconds = int(state["skipped"]), float(state["seconds"])
            self.images_read.skipped = int(state["skipped_images"])
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(newest / "state.json", repr(error)) from None
        logger.info("continuing from %s", newest)

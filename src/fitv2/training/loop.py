"""The loop of a training of any kind: one step after another, logged, measured, checkpointed and drawn."""

from __future__ import annotations

import logging
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Generic, NamedTuple

import torch

from ..checkpoints.training_state import prune, save_checkpoint
from ..data.loader import PackLoader, Step
from ..distributed.ranks import on_rank0
from ..errors import UserError, lack_of_memory_told
from ..settings.autoencoder import AnyRecipe
from .learner import BaseLearner
from .log import RunLog
from .progress import Progress
from .run_folder import exported, keep_provenance, keep_recipe
from .watch import DataGone

logger = logging.getLogger(__name__)


class StepResult(NamedTuple):
    """An optimiser step over all processes.

    Attributes:
        losses: The loss, and its parts if it has any: means over all images.
        grad_norm: The norm of the gradient before clipping; not finite if the step was skipped.
        images: The number of images that could be read.
        asked: The signal that has come to one of the processes, if any.
    """

    losses: dict[str, float]
    grad_norm: float
    images: int
    asked: signal.Signals | None


class TrainingLoop(ABC, Generic[AnyRecipe]):
    """A training in a run's folder; subclasses say what a step trains, and what is measured, drawn and exported.

    Attributes:
        recipe: With its precision decided.
        run: The folder.
        device: Where it trains.
        main: Whether this process writes files and reports.
        sources: What it is trained on, for messages.
        content: The digest of that.
        exports: The name of the folder in the run that holds the averaged weights.
        sharded: Whether tensors are sharded over the processes.
        sheet_every: Steps between sheets of images; None: no sheets.
        begun: The checkpoint, and its state.json, from which training continues.
        progress: How far the run is.
    """

    recipe: AnyRecipe
    run: Path
    device: torch.device
    main: bool = True
    sources: str
    content: str
    exports: str
    sharded: bool = False
    sheet_every: int | None
    begun: tuple[Path, dict[str, Any]] | None
    learner: BaseLearner
    loader: PackLoader
    progress: Progress

    @abstractmethod
    def step(self, step: Step) -> StepResult:
        """Trains one step and counts it in the progress. Raises DataGone and Diverged as `fit` does."""

    @abstractmethod
    def measure(self) -> dict[str, float]:
        """Returns the figures of this step that are due, such as the held-out loss. Every process calls this."""

    @abstractmethod
    def write_sheet(self) -> None:
        """Draws a sheet of images with the averaged weights. Raises UserError or OSError if that is not possible."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Writes the averaged weights as a folder that other commands load. Raises OSError."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Returns what state.json of a checkpoint has beside the progress."""

    def begin(self) -> None:
        """Does what is left to do between the checkpoint and the first step."""

    def fit(self, report: Callable[[dict[str, Any]], None]) -> None:
        """Trains to the last step, or to the one during which Ctrl-C or SIGTERM comes; `report` gets each log line.

        Raises:
            DataGone: The data cannot be read any more; the last step is saved.
            Diverged: No gradient is finite any more.
        """
        progress, settings = self.progress, self.recipe.log
        with progress.termination:
            self.resume()
            progress.check_exports(settings.export_at)
            self.begin()
            log = RunLog(self.run, progress.done, self.recipe, self.device) if self.main else None
            if self.main:
                if progress.unfinished:  # Else nothing is trained with these settings.
                    keep_recipe(self.run, self.recipe)
                keep_provenance(self.run, progress.done, self.content)
            # The previous run may have stopped between writing this checkpoint and its sheet.
            if progress.is_due(self.sheet_every) and not on_rank0(progress.sheet.exists):
                self.draw_sheet()
            steps = self.loader.steps(progress.cursor)
            try:
                for figures in self.timed_steps(steps):
                    figures |= self.measure()
                    if log is not None:
                        log.write(figures)
                        report(figures)
                    # Before the checkpoint of its step: stopped in between, the step is trained and exported again.
                    if progress.done in settings.export_at:
                        self.export(exported(self.run, progress.done))
                    if progress.stopping or progress.is_due(settings.checkpoint_every):
                        self.save()
                    if progress.is_due(self.sheet_every) and not progress.stopping:
                        self.draw_sheet()
            except DataGone as error:
                if progress.done > progress.saved:
                    self.save(keep=None)
                raise progress.gone(error, self.sources) from None
            finally:
                steps.close()
                if log is not None:
                    log.close()

    def draw_sheet(self) -> None:
        """Draws the sheet. A failure is a warning, because checkpoints do not depend on sheets."""
        try:
            # The other processes of sharded weights would wait for one that leaves the network without memory.
            with nullcontext() if self.sharded else lack_of_memory_told():
                self.write_sheet()
        except (UserError, OSError) as error:
            logger.warning("no sample sheet %s: %s", self.progress.sheet.name, error)

    def timed_steps(self, steps: Iterator[Step]) -> Iterator[dict[str, Any]]:
        """Trains step by step and yields the figures of each; those of time are explained in `Progress.timed`."""
        progress = self.progress
        progress.start_clock()
        while progress.unfinished:
            figures: dict[str, Any] = {}
            with progress.timed(figures, self.device.type == "cpu"):
                step = next(steps)
                result = self.step(step)
                figures |= {
                    "step": progress.done,
                    "epoch": progress.cursor.epoch,
                    **result.losses,
                    "grad_norm": result.grad_norm,
                    "learning_rate": self.learner.optimizer.learning_rate,
                    "images": result.images,
                    "tokens": step.tokens,
                    "packing_efficiency": round(step.packing_efficiency, 5),
                    "skipped": progress.gradients.skipped,
                    "skipped_images": progress.images_read.skipped,
                }
            if progress.unfinished:
                progress.stopped_by = result.asked
            yield figures

    def save(self, keep: int | None = 0) -> None:
        """Writes the averaged weights and a checkpoint, and removes older checkpoints.

        keep: the number of checkpoints that stay; 0: as the recipe says; None: all. Raises OSError.
        """
        folder, progress = self.run / "checkpoints", self.progress
        state = self.state() | progress.state()
        with progress.saving():
            # The export first: a run killed in between has to repeat the step, and exports it again.
            self.export(self.run / self.exports)
            save_checkpoint(folder, progress.done, self.learner.parts(), state, self.sharded)
        progress.saved = progress.done
        if keep is not None:
            on_rank0(lambda: prune(folder, keep or self.recipe.log.keep_checkpoints))

    def resume(self) -> None:
        """Restores weights, averages, moments and the position in the data from the newest checkpoint, if any."""
        if self.begun is None:
            if on_rank0((self.run / "log.jsonl").is_file):
                logger.info("no checkpoint in %s yet: starting at step 0", self.run)
            return
        self.learner.restore(self.begun[0])
        self.progress.restore(*self.begun)

"""The loop of a training of any kind: one step after another, logged, measured, checkpointed and drawn."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor

from ..build import with_precision
from ..checkpoints.training_state import prune, save_checkpoint
from ..data.loader import PackLoader, StepData
from ..distributed.ranks import Ranks, on_rank0, sum_over_ranks
from ..errors import UserError, lack_of_memory_told
from ..settings.autoencoder import AnyRecipe
from ..system.device import choose_precision
from .learner import BaseLearner
from .log import LOG, RunLog
from .progress import SIGNALS, Progress
from .run_folder import exported, keep_provenance, keep_recipe, resume_command
from .trackers import check_packages
from .watch import DataGone

logger = logging.getLogger(__name__)


class TrainingLoop(ABC, Generic[AnyRecipe]):
    """A training in a run's folder; subclasses say what a step trains, and what is measured, drawn and exported.

    Attributes:
        command: The command that begins it.
        recipe: With its precision decided.
        run: The folder.
        ranks: The processes that train together; the main one writes files and reports.
        sources: What it is trained on, for messages.
        content: The digest of that.
        exports: The name of the folder in the run that holds the averaged weights.
        sharded: Whether tensors are sharded over the processes.
        sheet_every: Steps between sheets of images; None: no sheets.
        begun: The checkpoint, and its state.json, from which training continues.
        progress: How far the run is.
    """

    command: str
    sources: str
    content: str
    exports: str
    sharded: bool = False
    sheet_every: int | None
    begun: tuple[Path, dict[str, Any]] | None
    learner: BaseLearner
    loader: PackLoader

    def __init__(self, recipe: AnyRecipe, run: Path, ranks: Ranks) -> None:
        self.run, self.ranks = run, ranks
        self.recipe: AnyRecipe = on_rank0(partial(with_precision, recipe, ranks.device))
        settings, log = self.recipe.training, self.recipe.log
        on_rank0(partial(check_packages, log.trackers))
        assert settings.precision != "auto"
        choose_precision(settings.precision, ranks.device)  # It warns where bf16 is slow.
        self.progress = Progress(run, settings.steps, resume_command(run, self.command), tells=ranks.is_main_process)

    @abstractmethod
    def backward(self, step: StepData, images: int) -> dict[str, Tensor]:
        """Accumulates the gradient of a step; images: the number of readable ones over all processes.

        Returns the loss, and its parts if it has any, () float32: their means over the processes are over all images.
        """

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
        progress, settings, main = self.progress, self.recipe.log, self.ranks.is_main_process
        with progress.termination:
            self.resume()
            progress.check_exports(settings.export_at)
            self.begin()
            log = RunLog(self.run, progress.done, self.recipe, self.ranks.device) if main else None
            if main:
                if progress.unfinished:  # Else nothing is trained with these settings.
                    keep_recipe(self.run, self.recipe)
                keep_provenance(self.run, progress.done, self.content)
            # The previous run may have stopped between writing this checkpoint and its sheet.
            if progress.is_due(self.sheet_every) and not on_rank0(progress.sheet.exists):
                self.draw_sheet()
            steps = self.loader.steps(progress.cursor)
            progress.start_clock()
            try:
                while progress.unfinished:
                    with progress.timed(on_cpu=self.ranks.device.type == "cpu") as figures:
                        figures |= self.train_step(next(steps))
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
                    self.save(prunes=False)
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

    def train_step(self, step: StepData) -> dict[str, Any]:
        """Trains one step, counts it in the progress and returns its figures for the log.

        A step whose gradient is not finite is counted and otherwise skipped.

        Raises:
            DataGone: Too many images cannot be read.
            Diverged: Too many gradients in a row are not finite.
        """
        progress, device, world = self.progress, self.ranks.device, self.ranks.num_processes
        gone = int(step.unreadable > 0 and self.loader.is_gone())
        # On the CPU, so that nothing waits for the device.
        counts = torch.tensor([sum(step.readable), step.unreadable, gone])
        images, unreadable, gone = sum_over_ranks(counts).tolist()
        progress.images_read.check(images, unreadable, gone)
        losses = self.backward(step, images)
        norm = self.learner.update(progress.done)
        progress.done, progress.cursor = progress.done + 1, step.after
        # Whether to stop travels with the loss, so that all processes stop at the same step.
        asked = torch.tensor([float(progress.termination.asked == number) for number in SIGNALS], device=device)
        sums = sum_over_ranks(torch.cat([torch.stack([*losses.values(), norm]), asked])) / world
        *means, grad_norm = sums[: -len(SIGNALS)].tolist()
        progress.gradients.check(progress.done, grad_norm)
        if progress.unfinished:
            came = zip(SIGNALS, sums[-len(SIGNALS) :].tolist(), strict=True)
            progress.stopped_by = next((number for number, count in came if count), None)
        return {
            "step": progress.done,
            "epoch": progress.cursor.epoch,
            **dict(zip(losses, means, strict=True)),
            "grad_norm": grad_norm,
            "learning_rate": self.learner.optimizer.learning_rate,
            "images": images,
            "tokens": step.tokens,
            "packing_efficiency": round(step.packing_efficiency, 5),
            "skipped": progress.gradients.skipped,
            "skipped_images": progress.images_read.skipped,
        }

    def save(self, prunes: bool = True) -> None:
        """Writes the averaged weights and a checkpoint, and if asked removes older checkpoints. Raises OSError."""
        folder, progress = self.run / "checkpoints", self.progress
        state = self.state() | progress.state()
        with progress.saving():
            # The export first: a run killed in between has to repeat the step, and exports it again.
            self.export(self.run / self.exports)
            save_checkpoint(folder, progress.done, self.learner.parts(), state, self.sharded)
        progress.saved = progress.done
        if prunes:
            on_rank0(lambda: prune(folder, self.recipe.log.keep_checkpoints))

    def resume(self) -> None:
        """Restores weights, averages, moments and the position in the data from the newest checkpoint, if any."""
        if self.begun is None:
            if on_rank0((self.run / LOG).is_file):
                logger.info("no checkpoint in %s yet: starting at step 0", self.run)
            return
        self.learner.restore(self.begun[0])
        self.progress.restore(*self.begun)

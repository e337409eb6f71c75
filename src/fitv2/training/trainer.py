"""The training loop: one packed step after another, logged, checkpointed, resumable (on a CPU bit for bit).

After the start no global random state is used: the order of the data follows from (seed, epoch), and the times, noise
and dropped labels of a pack from (seed, step, pack). Resuming therefore restores tensors, the step and the position in
the data, and no generator.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import randomness
from ..build import build_loss_at, build_text_encoder, sampling_advice, with_precision
from ..checkpoints.model_folder import Pretrained, copy_recommended, keep_recommended, save_pretrained, suitable
from ..checkpoints.training_state import damaged, newest_state, prune, save_checkpoint
from ..data.dataset import Dataset
from ..data.loader import DataCursor, PackLoader, Step
from ..device import choose_precision
from ..distributed.ranks import Ranks, join_processes, on_rank0, sum_over_ranks
from ..model.config import NetworkConfig
from ..model.network import build_network
from ..randomness import Purpose, seed_of, torch_generator
from ..settings import Recipe
from .finetune import init_from, trained_before, trained_names
from .holdout import Holdout
from .learner import Learner
from .log import RunLog
from .malloc_trim import trim_heap
from .run_folder import check_data, exported, facts, identity, keep_provenance, keep_recipe, resume_command
from .sample_sheet import sheet_requests, sheet_sampling, write_sheet
from .sigterm import SigtermHandler
from .trackers import check_packages
from .watch import DataGone, DataWatch, GradientWatch

logger = logging.getLogger(__name__)
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StepResult(NamedTuple):
    """An optimiser step over all processes.

    Attributes:
        loss: The mean over all images.
        grad_norm: The norm of the gradient before clipping; not finite if the step was skipped.
        images: The number of images that could be read.
        asked: The signal that has come to one of the processes, if any.
    """

    loss: float
    grad_norm: float
    images: int
    asked: signal.Signals | None


class Trainer:
    """A run in a folder: recipe.json, log.jsonl, checkpoints/, samples/ and model/.

    Training continues from the newest checkpoint in the folder, if there is one; else it starts from the weights of
    `base`, if given; else from scratch.

    Attributes:
        ranks: The processes that train together; default: those of the launcher.
        done: The number of steps that are trained.
        begun: The checkpoint, and its state.json, from which training continues.
        stopped_by: The signal that ended training before its last step, which is saved.

    Raises:
        UserError: The checkpoint is damaged, or belongs to other classes or other data.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        config: NetworkConfig,
        run: Path,
        base: Pretrained | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = join_processes() if ranks is None else ranks
        device = self.ranks.device
        self.recipe = recipe = on_rank0(partial(with_precision, recipe, device))
        on_rank0(partial(check_packages, recipe.log.trackers))
        self.dataset, self.run, settings = dataset, run, recipe.training
        assert settings.precision != "auto"
        choose_precision(settings.precision, device)  # It warns where bf16 is slow.
        self.facts, self.identity = facts(dataset, recipe.model.encoder), identity(dataset)
        self.begun = on_rank0(self._find_checkpoint)
        self.recommended: Mapping[str, Any] = sampling_advice(settings)
        text = build_text_encoder(recipe.model, dataset)
        torch.manual_seed(seed_of(Purpose.WEIGHTS, settings.seed))
        network = build_network(config)
        # Decided once per run: a checkpoint records which parameters are trained.
        trained = [name for name, _ in network.named_parameters()]
        if self.begun is not None:
            trained = trained_before(*self.begun, trained, settings.trainable)
        elif base is not None:
            start = init_from(network, base, dataset, settings)
            for note in start.notes:
                logger.info("%s: %s", settings.init_from, note)
            trained = trained_names(trained, settings.trainable, start.reinitialised)
            advice = sampling_advice(settings, base.recommended)
            self.recommended = suitable(advice, config, str(settings.init_from)) or self.recommended
        self.learner = Learner(network, trained, settings, self.ranks, text)
        self.holdout = Holdout(dataset, recipe, build_loss_at(config), text)
        self.loader = PackLoader(
            dataset,
            settings.max_tokens_per_batch,
            settings.batches_per_step,
            settings.seed,
            *(self.ranks.process_index, self.ranks.num_processes, settings.workers),
            pin=device.type == "cuda",
            held_out=self.holdout.chosen,
            captioned=text is not None,
        )
        self.done = self.saved = 0  # saved: the step of the newest checkpoint.
        self.cursor, self.seconds = DataCursor(), 0.0
        self.gradients, self.images_read = GradientWatch(), DataWatch()
        told = "saving the current step, then stopping; press Ctrl-C again to stop at once without saving"
        self.termination = SigtermHandler(*SIGNALS, told=told if self.ranks.is_main_process else "")
        self.stopped_by: signal.Signals | None = None

    def _find_checkpoint(self) -> tuple[Path, dict[str, Any]] | None:
        begun = newest_state(self.run / "checkpoints")
        if begun is not None:
            check_data(self.run, self.recipe, self.identity, begun[1])
        return begun

    @property
    def stopping(self) -> bool:
        """Whether a signal ended training before its last step."""
        return self.stopped_by is not None

    def fit(self, report: Callable[[dict[str, Any]], None]) -> None:
        """Trains to the last step, or to the one during which Ctrl-C or SIGTERM comes; `report` gets each log line.

        Raises:
            DataGone: The data cannot be read any more; the last step is saved.
            Diverged: No gradient is finite any more.
        """
        with self.termination:
            self.resume()
            self.learner.compile()
            main, settings = self.ranks.is_main_process, self.recipe.log
            log = RunLog(self.run, self.done, self.recipe, self.ranks.device) if main else None
            if main:
                if self.done < self.recipe.training.steps:  # Else nothing is trained with these settings.
                    keep_recipe(self.run, self.recipe)
                keep_provenance(self.run, self.done, self.identity["content"])
                keep_recommended(self.run / "model", self.recommended)
            # The previous run may have stopped between writing this checkpoint and its sample sheet.
            if self.samples_are_due() and not on_rank0(self.sheet.exists):
                self.write_samples()
            steps = self.loader.steps(self.cursor)
            try:
                for figures in self.timed_steps(steps):
                    figures |= self.holdout.measure(self.done, self.learner.model, self.averaged())
                    if log is not None:
                        log.write(figures)
                        report(figures)
                    # Before the checkpoint of its step: stopped in between, the step is trained and exported again.
                    if self.done in settings.export_at:
                        self.export(exported(self.run, self.done))
                    if self.checkpoint_is_due():
                        self.save()
                    if self.samples_are_due() and not self.stopping:
                        self.write_samples()
            except DataGone as error:
                if self.done > self.saved:
                    self.save(keep=None)
                reached = f"step {self.done} is saved" if self.done else "no step was trained yet"
                raise DataGone(
                    f"{error}: {self.recipe.data.source} has vanished or is damaged; {reached}. When the data is back, "
                    f"continue with: {resume_command(self.run)}"
                ) from None
            finally:
                steps.close()
                if log is not None:
                    log.close()

    def timed_steps(self, steps: Generator[Step]) -> Iterator[dict[str, Any]]:
        """Trains step by step and yields the figures of each.

        tokens_per_second includes waiting for images; seconds also the checkpoints, sheets and held-out losses since
        the last step.
        cpu_seconds is the time of all threads, which other work on the machine hardly changes.
        """
        clock = time.perf_counter()
        while self.done < self.recipe.training.steps and not self.stopping:
            start, cpu_start = time.perf_counter(), time.process_time()
            step = next(steps)
            result = self.step(step)
            end, cpu_seconds = time.perf_counter(), time.process_time() - cpu_start
            self.seconds += end - clock
            clock = end
            if self.ranks.device.type == "cpu":
                trim_heap(self.done)
            if self.done < self.recipe.training.steps:
                self.stopped_by = result.asked
            yield {
                "step": self.done,
                "epoch": self.cursor.epoch,
                "loss": result.loss,
                "grad_norm": result.grad_norm,
                "learning_rate": self.learner.optimizer.learning_rate,
                "images": result.images,
                "tokens": step.tokens,
                "tokens_per_second": step.tokens / (end - start),
                "packing_efficiency": round(step.packing_efficiency, 5),
                "skipped": self.gradients.skipped,
                "skipped_images": self.images_read.skipped,
                "seconds": round(self.seconds, 3),
                "cpu_seconds": round(cpu_seconds, 4),
            }

    def step(self, step: Step) -> StepResult:
        """Trains one step; a step whose gradient is not finite is counted and otherwise skipped.

        Each pack's mean loss is weighted by its fraction of the step's readable images, so that packs and processes of
        unequal numbers of images add up to the gradient of one big batch.

        Raises:
            DataGone: Too many images cannot be read.
            Diverged: Too many gradients in a row are not finite.
        """
        device, world = self.ranks.device, self.ranks.num_processes
        gone = int(step.unreadable > 0 and self.loader.is_gone())
        # On the CPU, so that nothing waits for the device.
        counts = torch.tensor([sum(step.readable), step.unreadable, gone])
        images, unreadable, gone = sum_over_ranks(counts).tolist()
        self.images_read.check(images, unreadable, gone)
        weights = [readable / images * world for readable in step.readable]
        generators = (self.pack_generator(number) for number in range(len(step.packs)))
        total = self.learner.backward(step.packs, weights, generators)
        norm = self.learner.update(self.done)
        self.done, self.cursor = self.done + 1, step.after
        # Whether to stop travels with the loss, so that all processes stop at the same step.
        asked = torch.tensor([float(self.termination.asked == number) for number in SIGNALS], device=device)
        figures = sum_over_ranks(torch.cat([torch.stack([total, norm]), asked])) / world
        loss, grad_norm, *asked = figures.tolist()
        self.gradients.check(self.done, grad_norm)
        came = next((number for number, count in zip(SIGNALS, asked, strict=True) if count), None)
        return StepResult(loss, grad_norm, images, came)

    def pack_generator(self, number: int) -> torch.Generator:
        """Returns the generator of a pack of this process; it does not depend on the number of processes."""
        pack = number * self.loader.world + self.loader.rank
        return torch_generator(Purpose.TRAINING, self.recipe.training.seed, self.done, pack)

    def checkpoint_is_due(self) -> bool:
        last = self.stopping or self.done == self.recipe.training.steps
        return last or self.done % self.recipe.log.checkpoint_every == 0

    def save(self, keep: int | None = 0) -> None:
        """Writes a checkpoint and the averaged weights as a model folder, and removes older checkpoints.

        keep: the number of checkpoints that stay; 0: as the recipe says; None: all. Raises OSError.
        """
        folder, parts, trained = self.run / "checkpoints", self.learner.parts(), self.learner.trained
        state = {
            **self.identity,
            "trained": trained if len(trained) < len(parts["model"]) else "all",
            "position": asdict(self.cursor),
            "skipped": self.gradients.skipped,
            "skipped_images": self.images_read.skipped,
            "seconds": self.seconds,
            "randomness": randomness.VERSION,
        }
        try:
            # The model first: a run killed in between has to repeat the step, and writes the model again.
            self.export(self.run / "model")
            save_checkpoint(folder, self.done, parts, state, self.learner.model.sharded)
        except OSError as error:
            raise OSError(
                f"step {self.done} could not be saved ({error}); the checkpoints before it are unchanged: make room "
                f"for {folder}, then --resume continues from the newest"
            ) from None
        self.saved = self.done
        if keep is not None:
            on_rank0(lambda: prune(folder, keep or self.recipe.log.keep_checkpoints))

    def export(self, folder: Path) -> None:
        """Writes the averaged weights as a model folder; rank 0 gathers them, tensor by tensor."""
        model = self.learner.model
        weights = model.gather(self.learner.ema.average)
        about = self.facts | {"dtype": torch.float32, "step": self.done}
        on_rank0(lambda: copy_recommended(self.run / "model", folder))
        on_rank0(lambda: save_pretrained(folder, model.module.config, weights, **about))

    def resume(self) -> None:
        """Restores weights, averages, moments and the position in the data from the newest checkpoint, if any."""
        if self.begun is None:
            if on_rank0((self.run / "log.jsonl").is_file):
                logger.info("no checkpoint in %s yet: starting at step 0", self.run)
            return
        newest, state = self.begun
        self.learner.restore(newest)
        try:
            self.done, self.cursor = int(state["step"]), DataCursor(**state["position"])
            self.gradients.skipped, self.seconds = int(state["skipped"]), float(state["seconds"])
            self.images_read.skipped = int(state.get("skipped_images", 0))
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(newest / "state.json", repr(error)) from None
        self.saved = self.done
        logger.info("continuing from %s", newest)
        if state.get("randomness") != randomness.VERSION:
            logger.warning(
                "%s is by another version of fitv2: noise, times, dropped labels and the order of the images differ "
                "from here on",
                newest,
            )

    def samples_are_due(self) -> bool:
        every, last = self.recipe.log.sample_every, self.recipe.training.steps
        return every is not None and self.done > 0 and (self.done % every == 0 or self.done == last)

    @property
    def sheet(self) -> Path:
        """The path of this step's sample sheet."""
        return self.run / "samples" / f"step-{self.done:08d}.png"

    def write_samples(self) -> None:
        """Draws a sample sheet with the averaged weights, in the precision of training."""
        learner, config = self.learner, self.learner.model.module.config
        wanted = sheet_requests(self.facts, config.null_label), sheet_sampling(self.recipe, config)
        with self.averaged():
            write_sheet(self.sheet, learner.model, self.dataset, *wanted, learner.text)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Gives the network its averaged weights for a with block."""
        # Other images have other shapes than training steps, and would use up the limit on compiled graphs.
        eager = torch.compiler.set_stance("force_eager") if self.recipe.training.compile else nullcontext()
        with eager, self.learner.ema.applied_to(self.learner.model.module):
            yield

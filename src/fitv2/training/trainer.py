"""The training loop: one packed step after another, logged, checkpointed, resumable bit for bit.

No global random state is used after the start: data order comes from (seed, epoch), and times, noise and dropped
labels of a pack from (seed, step, pack). So a resume restores tensors, the step and the position, and no generator.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..atomic import write_file
from ..autoencoder import load_autoencoder
from ..build import build_objective
from ..config import Recipe, TrainingSettings
from ..data.dataset import Dataset
from ..data.loader import PackLoader, Position, Step
from ..errors import UserError
from ..finite import NotFinite
from ..generate import Sampling, default_solver
from ..model.config import NetworkConfig
from ..model.network import Network, build_network, load_strictly
from ..pretrained import Pretrained, save_pretrained, shapes_of
from ..processes import check_launcher, first_says
from .checkpoint import (
    checkpoints,
    load_optimizer_tensors,
    optimizer_tensors,
    prune,
    read_part,
    read_state,
    save_checkpoint,
)
from .ema import EMA
from .heap import trim_heap
from .log import RunLog
from .preemption import Termination
from .run import data_digest, keep_recipe
from .samples import draw_sheet
from .sharding import gathered, shard, whole
from .start import freeze_for_high_resolution, start_from

logger = logging.getLogger(__name__)
MOST_SKIPPED = 100


class Diverged(UserError):
    """No gradient is finite any more."""


def learning_rate(step: int, training: TrainingSettings) -> float:
    """Linear warm-up, constant, then linear decay to zero over the last `decay_share`; step counts from 0."""
    rise = min(1.0, (step + 1) / training.warmup_steps) if training.warmup_steps else 1.0
    decay = training.steps * training.decay_share
    fall = min(1.0, (training.steps - step) / decay) if decay else 1.0
    return training.learning_rate * rise * fall


class Trainer:
    """A run in the folder `run`: recipe.json, log.jsonl, checkpoints/, samples/ and, at the end, model/.

    Training starts from the newest checkpoint there, if any, else from the weights of `base`, else anew. stopping:
    SIGTERM has come to one of the processes, and the step that was under way is saved.
    """

    def __init__(
        self, recipe: Recipe, dataset: Dataset, config: NetworkConfig, run: Path, base: Pretrained | None = None
    ) -> None:
        settings = recipe.training
        self.recipe, self.dataset, self.run = recipe, dataset, run
        self.shapes, self.digest = shapes_of(dataset), data_digest(dataset)
        check_launcher()
        self.accelerator = Accelerator(mixed_precision=settings.precision, cpu=not torch.cuda.is_available())
        torch.manual_seed(settings.seed)
        model = build_network(config)
        model.activation_checkpointing = settings.activation_checkpointing
        if settings.train_only == "high-resolution":
            freeze_for_high_resolution(model)
        if base is not None:
            for note in start_from(model, base, dataset, settings.begin_anew):
                logger.info("%s: %s", settings.start_from, note)
        self.sharded = settings.sharding == "fsdp" and self.accelerator.num_processes > 1
        if self.sharded:
            shard(model, self.accelerator.device, self.accelerator.num_processes, settings.precision)
        self.model = model if self.sharded else self.accelerator.prepare(model)
        self.bare_model: Network = self.accelerator.unwrap_model(self.model)
        trained = {name: weight for name, weight in self.bare_model.named_parameters() if weight.requires_grad}
        self.names = list(trained)
        optimizer = torch.optim.AdamW(
            trained.values(),
            lr=settings.learning_rate,
            betas=(0.9, settings.beta2),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.optimizer = self.accelerator.prepare(optimizer)
        self.ema = EMA(self.bare_model, settings.ema_decay)
        self.objective = build_objective(settings, config)
        self.loader = PackLoader(
            dataset,
            settings.tokens_per_pack,
            settings.packs_per_step,
            settings.seed,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            settings.workers,
        )
        self.done = 0
        self.position = Position()
        self.skipped = self.skipped_in_a_row = 0
        self.seconds = 0.0
        self.termination, self.stopping = Termination(), False

    def fit(self, report: Callable[[dict[str, Any]], None]) -> None:
        """Trains to the last step, or to the one in which SIGTERM comes.

        `report` gets the figures of each step: those of the log.
        """
        with self.termination:
            self.train(report)

    def train(self, report: Callable[[dict[str, Any]], None]) -> None:
        self.resume()
        self.compile()
        main, log_settings = self.accelerator.is_main_process, self.recipe.log
        log = RunLog(self.run, self.done, log_settings.tensorboard) if main else None
        if main:
            keep_recipe(self.run, self.recipe)
        # Stopped after the checkpoint and before its sheet.
        if self.samples_are_due() and not first_says(self.sheet.exists):
            self.write_samples()
        steps = self.loader.steps(self.position)
        self.clock = time.perf_counter()
        while self.done < self.recipe.training.steps and not self.stopping:
            figures = self.timed_step(steps)
            trim_heap(self.done)
            if log is not None:
                log.write(figures)
                report(figures)
            last = self.stopping or self.done == self.recipe.training.steps
            if last or self.done % log_settings.checkpoint_every == 0:
                self.save()
            if self.samples_are_due() and not self.stopping:
                self.write_samples()
        steps.close()
        if log is not None:
            log.close()

    def compile(self) -> None:
        """Fuses the blocks if the recipe says so and the machine can."""
        if self.recipe.training.compile:
            # Halves of blocks are graphs of their own: none is worth cutting where DDP cuts gradients.
            torch._dynamo.config.optimize_ddp = False
            try:
                self.bare_model.compile_blocks(self.recipe.training.tokens_per_pack)
            except ValueError as error:
                logger.warning("%s: training goes on without training.compile", error)

    def timed_step(self, steps: Iterator[Step]) -> dict[str, Any]:
        """The next step and its figures.

        tokens_per_second includes waiting for pictures; seconds also the checkpoints and sheets since the last step.
        cpu_seconds: of all threads, which other work on the machine hardly changes.
        """
        start, cpu_start = time.perf_counter(), time.process_time()
        step = next(steps)
        loss, norm = self.step(step)
        end, cpu_seconds = time.perf_counter(), time.process_time() - cpu_start
        seconds = end - start
        self.seconds += end - self.clock
        self.clock = end
        return {
            "step": self.done,
            "epoch": self.position.epoch,
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "images": self.images,
            "tokens": step.tokens,
            "tokens_per_second": step.tokens / seconds,
            "real_share": round(step.real_share, 5),
            "skipped": self.skipped,
            "seconds": round(self.seconds, 3),
            "cpu_seconds": round(cpu_seconds, 4),
        }

    def step(self, step: Step) -> tuple[float, float]:
        """One optimiser step; returns the loss over all processes and the gradient norm. A non-finite one is skipped.

        Each pack's mean is weighted by its share of the step's pictures that could be read, so that packs and
        processes of unequal counts add up to the gradient of one big batch.
        """
        settings = self.recipe.training
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.done, settings)
        total = torch.zeros((), device=self.accelerator.device)
        # Not as planned: pictures that went bad meanwhile are left out, and must not count.
        self.images = self.over_all(sum(len(batch) for batch, _ in step.packs))
        for number, (batch, labels) in enumerate(step.packs):
            generator = torch.Generator().manual_seed(self.pack_seed(number))
            share = len(batch) / self.images * self.accelerator.num_processes
            batch, labels = batch.to(self.accelerator.device), labels.to(self.accelerator.device)
            last = number + 1 == len(step.packs)
            # The prepared model runs under autocast by itself; the loss and the backward pass stay outside. Sharded
            # gradients are shared after each pack: kept whole, they would take the memory that sharding saves.
            with nullcontext() if last or self.sharded else self.accelerator.no_sync(self.model):
                result = self.objective(self.model, batch, labels, self.bare_model.null_label, generator)
                self.accelerator.backward(result.loss * share)
            total += result.loss.detach() * share
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self.bare_model.parameters(), settings.clip)))
        if math.isfinite(norm):
            self.optimizer.step()
            self.ema.update(self.bare_model, self.done)
            self.skipped_in_a_row = 0
        else:
            self.skipped += 1
            self.skipped_in_a_row += 1
            logger.warning("step %d: the gradient is not finite, the step is skipped", self.done + 1)
            if self.skipped_in_a_row == MOST_SKIPPED:
                raise Diverged(
                    f"{MOST_SKIPPED} steps in a row had no finite gradient: the training has diverged; continue from "
                    "an earlier checkpoint with a lower training.learning_rate"
                )
        self.optimizer.zero_grad()
        self.done += 1
        self.position = step.after
        # The question whether to stop travels with the loss, so that all processes stop at the same step.
        asked = torch.tensor(float(self.termination.asked), device=total.device)
        loss, stop = self.accelerator.reduce(torch.stack([total, asked]), "mean").tolist()
        self.stopping = stop > 0 and self.done < settings.steps
        return loss, norm

    def over_all(self, count: int) -> int:
        """The sum over all processes."""
        own = torch.tensor(count, device=self.accelerator.device)
        return int(self.accelerator.reduce(own, "sum"))

    def pack_seed(self, number: int) -> int:
        """Seed of one pack's times, noise and dropped labels: distinct over steps, packs and processes."""
        settings = self.recipe.training
        pack = self.done * settings.packs_per_step + number * self.loader.world + self.loader.rank
        return settings.seed * 2**40 + pack

    def save(self) -> None:
        """Writes a checkpoint and the averaged weights as a model folder. Raises OSError when it cannot."""
        folder = self.run / "checkpoints"
        tensors = {
            "model": dict(self.bare_model.named_parameters()),
            "ema": self.ema.average,
            "optimizer": optimizer_tensors(self.optimizer, self.names),
        }
        state = {
            "data": self.digest,
            "position": asdict(self.position),
            "skipped": self.skipped,
            "seconds": self.seconds,
        }
        try:
            # The model first: a run killed in between has to repeat the step, and writes the model again.
            self.export(self.run / "model")
            save_checkpoint(folder, self.done, tensors, state, self.sharded)
        except OSError as error:
            raise OSError(
                f"step {self.done} could not be saved ({error}); the checkpoints before it are as they were: make room "
                f"for {folder}, then --resume continues from the newest"
            ) from None
        first_says(lambda: prune(folder, self.recipe.log.keep_checkpoints))

    def export(self, folder: Path) -> None:
        """The averaged weights as a model folder; one process gathers them, tensor by tensor."""
        weights = gathered(self.ema.average, keep=self.accelerator.is_main_process)
        about = list(self.dataset.class_names), self.shapes, torch.float32, self.dataset.autoencoder
        first_says(lambda: save_pretrained(folder, self.bare_model.config, weights, *about))

    def resume(self) -> None:
        """Restores weights, average, optimiser and position from the newest checkpoint, if there is one."""
        newest = first_says(lambda: next(reversed(checkpoints(self.run / "checkpoints")), None))
        if newest is None:
            if (self.run / "log.jsonl").is_file():
                logger.info("no checkpoint in %s yet: starting at step 0", self.run)
            return
        state, parameters = read_state(newest), dict(self.bare_model.named_parameters())
        load_strictly(self.bare_model, read_part(newest, "model", parameters))
        self.ema.load(read_part(newest, "ema", parameters))
        load_optimizer_tensors(self.optimizer, self.names, read_part(newest, "optimizer", parameters))
        try:
            self.done, self.position = state["step"], Position(**state["position"])
            self.skipped, self.seconds, digest = state["skipped"], state["seconds"], state["data"]
        except (KeyError, TypeError) as error:
            raise UserError(f"{newest} is damaged ({error!r}); delete it to continue from the one before") from None
        logger.info("continuing from %s", newest)
        if digest != self.digest:
            logger.warning("the pictures are not those of before: the run continues, but in another order")

    def samples_are_due(self) -> bool:
        every, last = self.recipe.log.sample_every, self.recipe.training.steps
        return every is not None and self.done > 0 and (self.done % every == 0 or self.done == last)

    @property
    def sheet(self) -> Path:
        """Where the sample sheet of this step belongs."""
        return self.run / "samples" / f"step-{self.done:08d}.png"

    def write_samples(self) -> None:
        """A sheet of the averaged model, made in the precision of training.

        Where weights are split, every process computes it, because none could hold them all.
        """
        main = self.accelerator.is_main_process
        if not main and not self.sharded:
            return
        log = self.recipe.log
        solver = default_solver(self.bare_model.config)
        sampling = Sampling(steps=log.sample_steps, solver=solver, guidance=log.sample_guidance)
        codecs = []

        def load() -> None:
            codecs.append(load_autoencoder(self.dataset.autoencoder, self.accelerator.device))

        try:
            first_says(load) if self.sharded else load()
        except ValueError as error:  # Training needs none, and may run where there is none.
            logger.warning("no sample sheet: %s", error)
            return
        # Pictures to look at have other shapes than steps: graphs of them would use up those that there may be.
        eager = torch.compiler.set_stance("force_eager") if self.recipe.training.compile else nullcontext()
        with eager, self.ema.applied_to(self.bare_model):
            names, codec = self.dataset.class_names, codecs[0] if codecs else None
            try:
                page = draw_sheet(self.bare_model, names, self.shapes, sampling, codec)
            except NotFinite as error:  # The next sheet may be well; what is trained is saved in any case.
                logger.warning("no sample sheet at step %d: %s", self.done, error)
                return
        if main:
            write_file(self.sheet, lambda draft: page.save(draft, "PNG"))

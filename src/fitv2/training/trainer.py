"""The training loop: one packed step after another, logged, checkpointed, resumable (on a CPU bit for bit).

No global random state is used after the start: data order comes from (seed, epoch), and times, noise and dropped
labels of a pack from (seed, step, pack). So a resume restores tensors, the step and the position, and no generator.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import randomness
from ..build import build_objective
from ..config import Recipe
from ..data.dataset import Dataset
from ..data.loader import PackLoader, Position, Step
from ..errors import UserError
from ..generate import Sampling, default_solver
from ..model.config import NetworkConfig
from ..model.network import Network, build_network, load_strictly
from ..pretrained import Pretrained, save_pretrained, shapes_of
from ..processes import first_says, new_accelerator
from ..randomness import Purpose, seed_of, torch_generator
from ..tokens import upload
from .checkpoint import damaged, newest_state, prune, restore, save_checkpoint
from .ema import EMA
from .heap import trim_heap
from .log import RunLog
from .optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors
from .preemption import Termination
from .run_folder import check_data, exported, identity, keep_provenance, keep_recipe, resume_command
from .samples import write_sheet
from .schedule import learning_rate
from .sharding import gathered, shard, whole
from .start import start_from, train_alone, trained_before, trained_names
from .watch import DataGone, DataWatch, GradientWatch

logger = logging.getLogger(__name__)


class Trainer:
    """A run in the folder `run`: recipe.json, log.jsonl, checkpoints/, samples/ and, at the end, model/.

    Training starts from the newest checkpoint there, if any, else from the weights of `base`, else anew. Raises
    UserError where the checkpoint is of other classes or other data. stopped_by: the signal that came to one of the
    processes; the step that was under way is saved then.
    """

    def __init__(
        self, recipe: Recipe, dataset: Dataset, config: NetworkConfig, run: Path, base: Pretrained | None = None
    ) -> None:
        settings = recipe.training
        self.recipe, self.dataset, self.run = recipe, dataset, run
        self.accelerator = new_accelerator(settings.precision)
        self.shapes, self.identity = shapes_of(dataset), identity(dataset)
        self.begun = first_says(lambda: newest_state(run / "checkpoints"))
        if self.begun is not None:
            first_says(lambda: check_data(run, recipe, self.identity, self.begun[1]))
        torch.manual_seed(seed_of(Purpose.WEIGHTS, settings.seed))
        model = build_network(config)
        model.activation_checkpointing = settings.activation_checkpointing
        self.names = self.begin(model, base)
        train_alone(model, set(self.names))
        self.sharded = settings.sharding == "fsdp" and self.accelerator.num_processes > 1
        if self.sharded:
            shard(model, self.accelerator.device, self.accelerator.num_processes, settings.precision)
        self.model = model if self.sharded else self.accelerator.prepare(model)
        self.bare_model: Network = self.accelerator.unwrap_model(self.model)
        self.optimizer = self.accelerator.prepare(build_optimizer(self.bare_model, settings))
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
            pin=self.accelerator.device.type == "cuda",
        )
        # saved: the step of the newest checkpoint.
        self.done = self.saved = 0
        self.position = Position()
        self.gradients, self.images_read = GradientWatch(), DataWatch()
        self.seconds = 0.0
        told = "saving the step under way, then stopping; Ctrl-C once more ends at once without saving"
        main = self.accelerator.is_main_process
        self.termination = Termination(signal.SIGINT, signal.SIGTERM, told=told if main else "")
        self.stopped_by: signal.Signals | None = None

    def begin(self, model: Network, base: Pretrained | None) -> list[str]:
        """Gives the network the weights of `base`, if there is one; returns the names of what is trained.

        That is a fact of the run: where it continues, its checkpoint says so.
        """
        settings, names = self.recipe.training, [name for name, _ in model.named_parameters()]
        if self.begun is not None:
            return trained_before(*self.begun, names, settings.train_only)
        if base is None:
            return names
        start = start_from(model, base, self.dataset, settings.begin_anew, settings.train_only)
        for note in start.notes:
            logger.info("%s: %s", settings.start_from, note)
        return trained_names(names, settings.train_only, start.anew)

    @property
    def stopping(self) -> bool:
        """Whether a signal ended the training before its last step."""
        return self.stopped_by is not None

    def fit(self, report: Callable[[dict[str, Any]], None]) -> None:
        """Trains to the last step, or to the one in which Ctrl-C or SIGTERM comes.

        `report` gets the figures of each step: those of the log. Raises DataGone, with the last step saved, when the
        data cannot be read any more, and Diverged when no gradient is finite any more.
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
            keep_provenance(self.run, self.done, self.identity["content"])
        # Stopped after the checkpoint and before its sheet.
        if self.samples_are_due() and not first_says(self.sheet.exists):
            self.write_samples()
        steps = self.loader.steps(self.position)
        self.clock = time.perf_counter()
        try:
            while self.done < self.recipe.training.steps and not self.stopping:
                figures = self.timed_step(steps)
                if self.accelerator.device.type == "cpu":
                    trim_heap(self.done)
                if log is not None:
                    log.write(figures)
                    report(figures)
                # Before the checkpoint of its step: stopped in between, the step is trained and exported again.
                if self.done in log_settings.export_at:
                    self.export(exported(self.run, self.done))
                last = self.stopping or self.done == self.recipe.training.steps
                if last or self.done % log_settings.checkpoint_every == 0:
                    self.save()
                if self.samples_are_due() and not self.stopping:
                    self.write_samples()
        except DataGone as error:
            if self.done > self.saved:
                self.save(keep=None)
            raise error.told(self.recipe.data.source, self.done, resume_command(self.run)) from None
        finally:
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
            except UserError as error:
                logger.warning("%s: training goes on without training.compile", error)

    def timed_step(self, steps: Iterator[Step]) -> dict[str, Any]:
        """The next step and its figures.

        tokens_per_second includes waiting for pictures; seconds also the checkpoints and sheets since the last step.
        cpu_seconds: of all threads, which other work on the machine hardly changes.
        """
        start, cpu_start = time.perf_counter(), time.process_time()
        step = next(steps)
        gone = int(step.unreadable > 0 and self.loader.is_gone())
        self.images_read.check(*self.over_all(sum(step.readable), step.unreadable, gone))
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
            "skipped": self.gradients.skipped,
            "skipped_images": self.images_read.skipped,
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
        device, world = self.accelerator.device, self.accelerator.num_processes
        total = torch.zeros((), device=device)
        # Not as planned: images that went bad meanwhile are left out, and must not count.
        (self.images,) = self.over_all(sum(step.readable))
        for number, (batch, labels) in enumerate(step.packs):
            generator = self.pack_generator(number)
            share = step.readable[number] / self.images * world
            batch, labels = batch.to(device), upload(labels, device)
            last = number + 1 == len(step.packs)
            # The prepared model runs under autocast by itself; the loss and the backward pass stay outside. Sharded
            # gradients are shared after each pack: kept whole, they would take the memory that sharding saves.
            with nullcontext() if last or self.sharded else self.accelerator.no_sync(self.model):
                result = self.objective(self.model, batch, labels, self.bare_model.null_label, generator)
                self.accelerator.backward(result.loss * share)
            total += result.loss.detach() * share
        norm = whole(torch.nn.utils.clip_grad_norm_(self.bare_model.parameters(), settings.clip))
        # All of a step is given to the device before the host waits for it: a step without a finite gradient is left
        # out there, as torch's own gradient scaler does it.
        finite = norm.isfinite()
        self.optimizer.optimizer.found_inf = (~finite).float()
        self.optimizer.step()
        self.ema.update(self.bare_model, self.done, finite)
        self.optimizer.zero_grad()
        self.done += 1
        self.position = step.after
        # The question whether to stop travels with the loss, so that all processes stop at the same step.
        asked = [float(self.termination.asked == number) for number in (signal.SIGINT, signal.SIGTERM)]
        told = torch.cat([torch.stack([total, norm]), torch.tensor(asked, device=device)])
        loss, norm, interrupt, terminate = self.accelerator.reduce(told, "mean").tolist()
        if (interrupt or terminate) and self.done < settings.steps:
            self.stopped_by = signal.SIGINT if interrupt else signal.SIGTERM
        self.gradients.check(self.done, norm)
        return loss, norm

    def over_all(self, *counts: int) -> list[int]:
        """The sums over all processes."""
        if self.accelerator.num_processes == 1:
            return list(counts)
        return self.accelerator.reduce(torch.tensor(counts, device=self.accelerator.device), "sum").tolist()

    def pack_generator(self, number: int) -> torch.Generator:
        """For the times, noise and dropped labels of one of this process's packs, whatever the number of processes."""
        pack = number * self.loader.world + self.loader.rank
        return torch_generator(Purpose.TRAINING, self.recipe.training.seed, self.done, pack)

    def save(self, keep: int | None = 0) -> None:
        """Writes a checkpoint and the averaged weights as a model folder, and removes older checkpoints.

        keep: how many; 0: as the recipe says; None: all. Raises OSError when it cannot be written.
        """
        folder = self.run / "checkpoints"
        tensors = {
            "model": dict(self.bare_model.named_parameters()),
            "ema": self.ema.average,
            "optimizer": optimizer_tensors(self.optimizer, self.names),
        }
        state = {
            **self.identity,
            "trained": self.names if len(self.names) < len(tensors["model"]) else "all",
            "position": asdict(self.position),
            "skipped": self.gradients.skipped,
            "skipped_images": self.images_read.skipped,
            "seconds": self.seconds,
            "randomness": randomness.VERSION,
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
        self.saved = self.done
        if keep is not None:
            first_says(lambda: prune(folder, keep or self.recipe.log.keep_checkpoints))

    def export(self, folder: Path) -> None:
        """The averaged weights as a model folder; one process gathers them, tensor by tensor."""
        weights = gathered(self.ema.average, keep=self.accelerator.is_main_process)
        about = list(self.dataset.class_names), self.shapes, torch.float32, self.dataset.autoencoder, self.done
        first_says(lambda: save_pretrained(folder, self.bare_model.config, weights, *about))

    def resume(self) -> None:
        """Restores weights, average, optimiser and position from the newest checkpoint, if there is one."""
        if self.begun is None:
            if first_says((self.run / "log.jsonl").is_file):
                logger.info("no checkpoint in %s yet: starting at step 0", self.run)
            return
        (newest, state), parameters = self.begun, dict(self.bare_model.named_parameters())
        restore(newest, "model", parameters, partial(load_strictly, self.bare_model))
        restore(newest, "ema", parameters, self.ema.load)
        restore(newest, "optimizer", parameters, partial(load_optimizer_tensors, self.optimizer, self.names))
        try:
            self.done, self.position = int(state["step"]), Position(**state["position"])
            self.gradients.skipped, self.seconds = int(state["skipped"]), float(state["seconds"])
            self.images_read.skipped = int(state.get("skipped_images", 0))
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(newest / "state.json", repr(error)) from None
        self.saved = self.done
        logger.info("continuing from %s", newest)
        if state.get("randomness") != randomness.VERSION:
            logger.warning(
                "%s is by another version of fitv2: from here on noise, times, dropped labels and the order of the "
                "images differ from what that version would have drawn",
                newest,
            )

    def samples_are_due(self) -> bool:
        every, last = self.recipe.log.sample_every, self.recipe.training.steps
        return every is not None and self.done > 0 and (self.done % every == 0 or self.done == last)

    @property
    def sheet(self) -> Path:
        """Where the sample sheet of this step belongs."""
        return self.run / "samples" / f"step-{self.done:08d}.png"

    def write_samples(self) -> None:
        """A sheet of the averaged model, made in the precision of training."""
        log, model = self.recipe.log, self.bare_model
        sampling = Sampling(steps=log.sample_steps, solver=default_solver(model.config), guidance=log.sample_guidance)
        # Images to look at have other shapes than steps: graphs of them would use up those that there may be.
        eager = torch.compiler.set_stance("force_eager") if self.recipe.training.compile else nullcontext()
        with eager, self.ema.applied_to(model):
            write_sheet(self.sheet, model, self.dataset, self.shapes, sampling, self.accelerator, self.sharded)

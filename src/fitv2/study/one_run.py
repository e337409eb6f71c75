"""One run from nothing to its record: train, score every snapshot, write down what it took."""

from __future__ import annotations

import logging
import platform
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ..atomic import write_file, write_tensors
from ..autoencoder import Pixels
from ..build import build_base, build_dataset, build_model_config
from ..evaluation.scores import classifier_digest
from ..generate import Sampling
from ..model.config import NetworkConfig
from ..pretrained import Pretrained, default_device, load_pretrained
from ..training.plan import plan_figures
from ..training.samples import draw_sheet
from .definition import Condition, Run, Study, digest, points
from .record import Point, Record, Scores, read_record, write_record
from .scoring import PROTOCOL, Reference, curve_scores, data_of, examined, final_scores, load_reference
from .snapshots import Tell, TrainingLog, has_diverged, snapshots, train

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A run of a study: `out` is the study's folder of results, `work` that of all trainings."""

    name: str
    study: Study
    run: Run
    out: Path
    work: Path

    @property
    def folder(self) -> Path:
        """Of the training; studies with the same run share it."""
        return self.work / self.run.digest

    @property
    def record(self) -> Path:
        return self.out / "runs" / f"{self.run.name}.json"

    @property
    def sheet(self) -> Path:
        """Pictures of the first seed."""
        return self.out / "sheets" / f"{self.run.variant}.png"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that the scores depend on besides the training."""
        evaluation = self.study.evaluation
        data = {view: data_of(self.study.view_recipe(view)) for view in evaluation.views}
        about = {"protocol": PROTOCOL, "classifier": classifier_digest(), "data": data}
        return about | evaluation.model_dump(mode="json", exclude={"views"})

    def result(self) -> Record | None:
        """The record of this run with these settings, if there is one. Raises ValueError for a damaged one."""
        if not self.record.is_file():
            return None
        record = read_record(self.record)
        return record if (record.digest, record.settings) == (self.run.digest, self.settings) else None

    def is_done(self) -> bool:
        """Raises ValueError for a damaged record."""
        return self.result() is not None


def perform(job: Job, tell: Tell) -> None:
    """Does what is not done yet. Raises ValueError where it cannot."""
    run, steps = job.run, points(job.run.recipe, job.study.evaluation)
    train(run, steps, job.folder, tell)
    models = snapshots(steps, job.folder)
    dataset = build_dataset(run.recipe.data, run.recipe.model.patch_size)
    config = build_model_config(run.recipe, dataset, build_base(run.recipe.training))
    curve, final = Scorer(job, config, tell).all(models)
    cost, log = plan_figures(run.recipe, dataset, config), TrainingLog(job.folder)
    record = Record(
        study=job.name,
        variant=run.variant,
        seed=run.seed,
        digest=run.digest,
        recipe=run.recipe.model_dump(mode="json"),
        settings=job.settings,
        machine=machine(),
        cost=cost,
        evaluations={c.name: evaluations(sampling_of(job.study, config, c)) for c in job.study.evaluation.final},
        points=[
            Point(step=step, flops=cost["flops_per_step"] * step, scores=scores, **log.until(step))
            for step, scores in curve.items()
        ],
        final=final,
        loss=log.thinned(),
        skipped=log.skipped,
        diverged=has_diverged(job.folder),
    )
    write_record(job.record, record)


class Scorer:
    """Scores the snapshots of a run; what is seen in the pictures of each is a file in the run's folder, made once."""

    def __init__(self, job: Job, config: NetworkConfig, tell: Tell) -> None:
        self.job, self.config, self.tell = job, config, tell
        views, cache = job.study.evaluation.views, job.work / "references"
        self.references = {view: load_reference(job.study.view_recipe(view), cache) for view in views}
        self.done = self.total = 0

    def all(self, models: dict[int, Path]) -> tuple[dict[int, Scores], dict[str, Scores]]:
        """Of each step's point, and of the end by condition (only those that the model can make; none if diverged)."""
        evaluation, last = self.job.study.evaluation, self.job.run.recipe.training.steps
        final = self.possible() if last in models else []
        self.total = len(models) * evaluation.images + len(final) * evaluation.final_images
        points = {
            step: curve_scores(*self.seen(path, evaluation.point, evaluation.images)) for step, path in models.items()
        }
        end = {c.name: final_scores(*self.seen(models[last], c, evaluation.final_images)) for c in final}
        if final and self.job.run.seed == 0:
            self.draw(models[last], final[-1].view)
        return points, end

    def possible(self) -> list[Condition]:
        """Conditions whose shapes the model can make: one of a fixed grid makes squares alone."""
        return [c for c in self.job.study.evaluation.final if makes(self.config, self.references[c.view])]

    def seen(self, model: Path, condition: Condition, images: int) -> tuple[dict[str, Tensor] | None, Reference]:
        """What the classifier sees in pictures of one snapshot under one condition, and what to compare it with."""
        sampling = sampling_of(self.job.study, self.config, condition)
        about = {
            "model": model.name,
            "protocol": PROTOCOL,
            "classifier": classifier_digest(),
            "data": self.job.settings["data"][condition.view],
            "sampling": [sampling.solver, sampling.steps, sampling.guidance],
            "images": images,
        }
        path = self.job.folder / "seen" / f"{model.name}-{digest(about)}.safetensors"
        seen = read_seen(path)
        if seen is None:
            seen = self.look(model, condition.view, sampling, images) or {}
            write_tensors(path, seen)
        else:
            self.finished(images)
        return seen or None, self.references[condition.view]

    def look(self, model: Path, view: str, sampling: Sampling, images: int) -> dict[str, Tensor] | None:
        """The pictures themselves are not kept: what is seen in them gives every score."""
        pretrained, wishes = self.load(model), self.references[view].wishes(images, self.job.run.seed)
        with self.precision():
            return examined(pretrained.model, wishes, sampling, self.finished)

    def draw(self, model: Path, view: str) -> None:
        """A sheet of pictures, guided as the points are."""
        pretrained, evaluation = self.load(model), self.job.study.evaluation
        sampling = sampling_of(self.job.study, self.config, evaluation.point)
        with self.precision():
            page = draw_sheet(
                pretrained.model, pretrained.class_names, self.references[view].shapes, sampling, Pixels()
            )
        write_file(self.job.sheet, lambda draft: page.save(draft, "PNG"))

    def load(self, model: Path) -> Pretrained:
        pretrained = load_pretrained(model)
        pretrained.model.to(default_device())
        return pretrained

    def precision(self) -> torch.autocast:
        """That of the training."""
        return torch.autocast(
            default_device(), torch.bfloat16, enabled=self.job.run.recipe.training.precision == "bf16"
        )

    def finished(self, images: int) -> None:
        self.done += images
        self.tell("scoring", self.done, self.total)


def makes(config: NetworkConfig, reference: Reference) -> bool:
    """Whether a model can make every shape of a view; of a fixed grid it makes that square alone."""
    return config.fixed_grid is None or reference.sides == {side * config.patch_size for side in config.fixed_grid}


def read_seen(path: Path) -> dict[str, Tensor] | None:
    """None where there is nothing yet, or something damaged; empty for pictures that were not finite."""
    try:
        return load(path.read_bytes())
    except FileNotFoundError:
        return None
    except SafetensorError:
        logger.warning("%s is damaged and made again", path)
        return None


def sampling_of(study: Study, config: NetworkConfig, condition: Condition) -> Sampling:
    """How a model of that configuration is sampled."""
    sampler = study.evaluation.samplers[config.prediction]
    return Sampling(steps=sampler.steps, solver=sampler.solver, guidance=condition.guidance)


def evaluations(sampling: Sampling) -> int:
    """Of the network for one picture; guidance takes two of each call."""
    return sampling.model_calls * (1 if sampling.guidance == 1 else 2)


def machine() -> dict[str, str]:
    """What a run ran on, in words for people."""
    threads = torch.get_num_threads()
    cpu = f"CPU, {threads} thread{'s' if threads > 1 else ''} a run"
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "fitv2": version("fitv2"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }

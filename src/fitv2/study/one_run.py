"""One run from nothing to its record: train, score every snapshot, write down what it took."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch

from ..build import build_base, build_dataset, build_model_config
from ..commit import code_commit
from ..generate import Sampling
from ..profiling.training_plan import plan_figures
from .definition import points
from .job import Job
from .record import Point, Record, write_record
from .scoring import Scorer
from .snapshots import PICTURES, Tell, TrainingLog, has_diverged, snapshots, train


def perform(job: Job, tell: Tell) -> None:
    """Does what is not done yet. Raises ValueError where it cannot."""
    run, evaluation = job.run, job.study.evaluation
    steps = points(run.recipe, evaluation)
    dataset = build_dataset(run.recipe.data, run.recipe.model.patch_size, job.folder / PICTURES)
    config = build_model_config(run.recipe, dataset, build_base(run.recipe.training))
    scorer = Scorer(job, dataset, config, tell)  # Before the training: what cannot be scored need not be trained.
    train(run, steps, job.folder, tell)
    curve, final = scorer.all(snapshots(steps, job.folder))
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
        evaluations={c.name: evaluations(evaluation.sampling(c, config)) for c in scorer.final},
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


def evaluations(sampling: Sampling) -> int:
    """Of the network for one picture; guidance takes two of each call."""
    return sampling.model_calls * (1 if sampling.guidance == 1 else 2)


def machine() -> dict[str, str]:
    """What a run ran on, in words for people, and the commit of the code that scored it, where it is a checkout."""
    threads = torch.get_num_threads()
    cpu = f"CPU, {threads} thread{'s' if threads > 1 else ''} a run"
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "fitv2": version("fitv2"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    } | ({} if (commit := code_commit()) is None else {"commit": commit})

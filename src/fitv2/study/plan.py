"""What runs will take: operations by formula, and how many of them a second bring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..build import build_base, build_dataset, build_model_config
from ..model.cost import forward_flops
from ..pretrained import default_device
from ..profiling.measure import in_turn, matrix_product
from ..training.plan import plan_figures
from .definition import points
from .job import Job
from .one_run import evaluations
from .runner import threads_of_a_run

# Of the peak of large matrix products; what small models reach.
SHARE_OF_PEAK = 0.2


def plan(job: Job) -> dict[str, Any]:
    """Parameters, steps, and operations of the training and of the network in scoring."""
    recipe, evaluation = job.run.recipe, job.study.evaluation
    dataset = build_dataset(recipe.data, recipe.model.patch_size)
    config = build_model_config(recipe, dataset, build_base(recipe.training))
    figures = plan_figures(recipe, dataset, config)
    pictures = {condition: evaluation.final_images for condition in evaluation.final}
    pictures[evaluation.point] += evaluation.images * len(points(recipe, evaluation))
    calls = sum(evaluations(evaluation.sampling(c, config)) * images for c, images in pictures.items())
    scoring = calls * forward_flops(config, [round(figures["tokens_per_picture"])])
    flops = figures["flops_total"] + scoring
    return {"parameters": figures["parameters"], "steps": recipe.training.steps, "flops": flops}


def speed(jobs: Sequence[Job], at_a_time: int) -> tuple[float, str]:
    """Operations a second of one run, and how that is known: from records, else from large matrix products."""
    trained = [record.last for record in map(Job.result, jobs) if record is not None and record.points]
    if trained:
        rate = sum(point.flops for point in trained) / sum(point.seconds for point in trained)
        return rate, f"as fast as the {len(trained)} that are done"
    torch.set_num_threads(threads_of_a_run(at_a_time))
    work, flops = matrix_product(torch.bfloat16, torch.device(default_device()))
    (seconds,) = in_turn({"product": work}, repeats=1)["product"]
    return SHARE_OF_PEAK * flops / seconds, f"at {100 * SHARE_OF_PEAK:.0f} % of the peak of large matrix products"

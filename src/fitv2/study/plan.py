"""What runs will take: operations by formula, and how many of them a second bring."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from ..autoencoder import read_factor
from ..build import build_base, build_dataset, build_model_config
from ..device import choose_device
from ..model.config import NetworkConfig
from ..profiling.formula import forward_flops
from ..profiling.measure import in_turn, matrix_product
from ..profiling.training_plan import plan_figures
from ..settings import Recipe
from .conditions import Evaluation
from .definition import points
from .job import Job
from .one_run import evaluations
from .runner import threads_of_a_run
from .views import View, load_views, possible

# Of the peak of large matrix products; what small models reach.
SHARE_OF_PEAK = 0.2


def plans(jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
    """Of the runs of one study, by name: parameters, steps, operations of the training, and flops, with those of the
    network in scoring what it can make.
    """
    read_dataset, study = cache(build_dataset), jobs[0].study
    views = cache(lambda factor: load_views(study, factor, jobs[0].references))
    found = {}
    for job in jobs:
        recipe = job.run.recipe
        dataset = read_dataset(recipe.data, recipe.model.patch_size)
        config = build_model_config(recipe, dataset, build_base(recipe.training))
        figures = plan_figures(recipe, dataset, config)
        seen = views(read_factor(dataset.autoencoder))
        training = figures["flops_total"]
        flops = training + scoring_flops(recipe, study.evaluation, config, seen)
        costs = {"steps": recipe.training.steps, "training_flops": training, "flops": flops}
        found[job.run.name] = {"parameters": figures["parameters"]} | costs
    return found


def scoring_flops(recipe: Recipe, evaluation: Evaluation, config: NetworkConfig, views: dict[str, View]) -> float:
    """Of the network, for all pictures of a run."""
    flops = 0.0
    for condition in possible(evaluation, config, views):
        of_curve = evaluation.images * len(points(recipe, evaluation)) if condition == evaluation.point else 0
        view = views[condition.view]
        tokens = round(view.pixels(condition) / (config.patch_size * view.factor) ** 2)
        calls = evaluations(evaluation.sampling(condition, config))
        flops += (evaluation.final_images + of_curve) * calls * forward_flops(config, [tokens])
    return flops


def speed(jobs: Sequence[Job], at_a_time: int) -> tuple[float, str]:
    """Operations a second of one run, and how that is known: from records, else from large matrix products."""
    trained = [record.last for record in map(Job.result, jobs) if record is not None and record.points]
    if trained:
        rate = sum(point.flops for point in trained) / sum(point.seconds for point in trained)
        return rate, f"as fast as the {len(trained)} that are done"
    torch.set_num_threads(threads_of_a_run(at_a_time))
    work, flops = matrix_product(torch.bfloat16, choose_device())
    (seconds,) = in_turn({"product": work}, repeats=1)["product"]
    return SHARE_OF_PEAK * flops / seconds, f"at {100 * SHARE_OF_PEAK:.0f} % of the peak of large matrix products"

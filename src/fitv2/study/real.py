"""What real pictures score by the measures of a study: the floor of its tables, and its ceiling."""

from __future__ import annotations

import logging
from typing import Any

import torch
from pydantic import ValidationError

from ..atomic import write_text
from ..autoencoder import read_factor
from ..build import build_dataset
from ..errors import UserError
from ..evaluation.features import drawn_sets
from ..evaluation.frechet import Statistics, frechet_distance
from ..evaluation.suite import DRAWS, ImageSet
from ..evaluation.summary import Summary
from ..settings import Settings
from .job import KERNEL, Job
from .record import Scores
from .scoring import other_scores, recognised
from .views import croppable, load_views

logger = logging.getLogger(__name__)


class RealPlace(Settings):
    """Of the real pictures of a view, in its sizes or a given one.

    draws: what some of them, as many of each class as are made of a model and at most half, score against all others.
    recognised: of all. cut: the mean and the largest share of a picture that the view leaves out, None where that is
    not known.
    """

    draws: tuple[Scores, ...]
    recognised: float | None
    cut: tuple[float, float] | None


class Real(Settings):
    """settings: what decides the scores. places: by `Condition.place`. croppable: as `fitv2.study.views` has it."""

    settings: dict[str, Any]
    places: dict[str, RealPlace]
    croppable: dict[str, float] | None


def read_real(job: Job) -> Real | None:
    """What was written with the settings of the study; None where there is nothing, or of other settings.

    Raises ValueError for a damaged file.
    """
    if not job.real.is_file():
        return None
    try:
        real = Real.model_validate_json(job.real.read_bytes())
    except ValidationError as error:
        raise UserError(f"{job.real} is damaged ({error.errors()[0]['msg']}); the study makes it again") from None
    return real if real.settings == settings(job) else None


def settings(job: Job) -> dict[str, Any]:
    evaluation = job.study.evaluation
    places = list(dict.fromkeys(condition.place for condition in evaluation.final))
    drawn = {"drawn": "classes in turn", "kernel": KERNEL}
    return job.sight | {"images": evaluation.final_images, "places": places} | drawn


def write_real(job: Job) -> None:
    """Looks at the real pictures, unless it has been done with the same settings; a damaged file is made again."""
    try:
        if read_real(job) is not None:
            return
    except UserError as error:
        logger.warning("%s", error)
    data, patch = job.run.recipe.data, job.run.recipe.model.patch_size
    dataset = build_dataset(data, patch)
    factor = read_factor(dataset.autoencoder)
    views = load_views(job.study, factor, job.references)
    places = {}
    for condition in job.study.evaluation.final:
        if condition.place not in places:
            view = views[condition.view]
            seen = view.seen(condition.pixels)
            draws = tuple(drawn_scores(seen, job.study.evaluation.final_images, seed) for seed in range(DRAWS))
            places[condition.place] = RealPlace(draws=draws, recognised=recognised(seen, view.classes), cut=view.cut)
    real = Real(settings=settings(job), places=places, croppable=croppable(dataset, data, patch * factor))
    write_text(job.real, real.model_dump_json(indent=1) + "\n")


def drawn_scores(seen: Summary, images: int, seed: int) -> Scores:
    """Of so many random pictures, of classes in turn as models make them, against all others."""
    classes = seen.labels.unique()
    first, second, rest = drawn_sets(seen.labels, classes[torch.arange(images) % len(classes)], seed)
    others = torch.cat([second, rest])
    drawn, others = (ImageSet.of(seen, chosen, len(classes) > 1) for chosen in (first, others))
    distance = frechet_distance(Statistics.of(drawn.features), Statistics.of(others.features))
    return {"distance": distance} | other_scores(drawn, others)

"""A training of a study: its identity, its scores, and the commands that make both."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ..build import build_base, build_dataset, build_model_config
from ..checkpoints.model_folder import BUILTIN, load_pretrained
from ..checkpoints.state_dict import weights_digest
from ..data.dataset import Dataset
from ..data.emoji import EMOJI
from ..evaluation.evaluate import cache_folder
from ..evaluation.image_sets import is_fashion
from ..evaluation.inputs import open_reference
from ..profiling.training_plan import plan_figures
from ..settings.read import Recipe
from ..system.hashes import json_digest
from ..training.run_folder import exported
from .definition import Condition, Sampler, Study
from .results import CURVE, REAL, TRAINING, Table, run_id

# Changes when the same recipe trains to other weights. Version 1 gave times, noise and dropped labels the same random
# numbers whatever the seed, and initialised AdaLN-LoRA differently from the authors' code.
TRAINING_VERSION = "training-2"
# Changes when the same model gets other scores.
SCORING_VERSION = "study-3"
SEEDS_APART = 1_000_000
# A condition says how to sample; the recommendations that come with the model of `training.init_from` do not count.
PLAIN = ("--guidance-interval", "0", "1", "--guidance-power", "0", "--time-shift", "1", "--cache-interval", "1")
PLAIN += ("--upscale-from", "0", "--internal-interval", "0", "1")
# The metrics of `fitv2 evaluate` for a point of a curve, and for a final model.
CURVE_METRICS, METRICS = "fd,accuracy", "fd,kid,pr,accuracy"
_datasets: dict[str, Dataset] = {}


@dataclass(frozen=True)
class Scoring:
    """A score of one model; name: that of its condition, or CURVE for points along the training."""

    step: int
    name: str
    condition: Condition
    sampler: Sampler
    images: int


@dataclass(frozen=True, eq=False)
class Run:
    """A training of a variant with a seed; tuned: its value of the setting that the study tunes."""

    study: Study
    variant: str
    seed: int
    tuned: float | None = None

    @property
    def name(self) -> str:
        return f"{self.variant}, seed {self.seed}" + (f", {self.tuned:g}" if self.tunes else "")

    @property
    def tunes(self) -> bool:
        """Whether it is one of those that find the best value."""
        return self.study.tuning is not None and self.seed == self.study.tuning.seed

    @property
    def steps(self) -> int:
        return self.recipe.training.steps

    @cached_property
    def recipe(self) -> Recipe:
        return self.study.recipe_of(self.variant, self.seed, self.tuned)

    @cached_property
    def dataset(self) -> Dataset:
        """What it is trained on; equal data is read once."""
        model = self.recipe.model
        wanted = {"patch_size": model.patch_size, "captioned": model.encoder is not None}
        key = json.dumps([self.recipe.data.model_dump(mode="json"), wanted])
        if key not in _datasets:
            _datasets[key] = build_dataset(self.recipe.data, **wanted)
        return _datasets[key]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the trained weights, as `run_id` takes it."""
        settings = self.recipe.model_dump(mode="json", exclude={"log"})
        identity = {"training": TRAINING_VERSION, "settings": settings, "data": self.dataset.digest()}
        base = self.recipe.training.init_from
        return identity if base is None or base.startswith(BUILTIN) else identity | {"base": base_digest(base)}

    @cached_property
    def id(self) -> str:
        return run_id(**self.identity)

    @cached_property
    def costs(self) -> dict[str, float]:
        """The figures of `fitv2 train --dry-run`."""
        config = build_model_config(self.recipe, self.dataset, build_base(self.recipe.training))
        return plan_figures(self.recipe, self.dataset, config)

    @property
    def conditions(self) -> dict[str, Condition]:
        """Those that suit the variant, for a training that tunes only the first one; the first one decides."""
        found = [(name, c) for name, c in self.study.evaluation.conditions.items() if c.suits(self.variant)]
        return dict(found[:1] if self.tunes else found)

    @cached_property
    def scorings(self) -> list[Scoring]:
        """All scores in the order of their steps."""
        evaluation, conditions, found = self.study.evaluation, self.conditions, []
        if evaluation.points and evaluation.curve in conditions and not self.tunes:
            points = [*(point for point in evaluation.points if point < self.steps), self.steps]
            found = [(point, CURVE, conditions[evaluation.curve], evaluation.images) for point in points]
        found += [(self.steps, name, condition, evaluation.final_images) for name, condition in conditions.items()]
        return [Scoring(s, name, c, self.study.sampler_of(self.recipe, c), n) for s, name, c, n in found]

    @cached_property
    def scorings_by_id(self) -> dict[tuple[int, str], Scoring]:
        """The scores by step and `scoring_id`."""
        return {(scoring.step, self.scoring_id(scoring)): scoring for scoring in self.scorings}

    def scoring_id(self, scoring: Scoring) -> str:
        """Names all that decides a score besides the model."""
        evaluation = self.study.evaluation
        about = [SCORING_VERSION, evaluation.reference, evaluation.extractor, scoring.images, self.seed]
        condition = scoring.condition.model_dump(mode="json", exclude={"variants", "sampler"})
        if condition["internal_guidance"] is None:  # As before it existed: scores keep their names.
            del condition["internal_guidance"]
        about += [condition, scoring.name == CURVE]
        if digest := reference_digest(evaluation.reference):
            about.append(digest)
        if self.recipe.training.init_from:
            about.append(PLAIN)
        return json_digest([*about, scoring.sampler.model_dump(mode="json")])[:16]

    def pending(self, table: Table) -> list[Scoring]:
        """The scorings that the table lacks."""
        return [s for (step, name), s in self.scorings_by_id.items() if not table.has(self.id, step, name)]

    def train_command(self, folder: Path) -> list[str]:
        settings = self.study.settings_of(self.variant, self.seed, self.tuned)
        changes = [word for setting in settings for word in ("--set", setting)]
        return ["train", "--recipe", self.study.recipe, *changes, "--out", str(folder), "--resume"]

    def evaluate_command(self, model: Path, scoring: Scoring, out: Path) -> list[str]:
        evaluation, condition = self.study.evaluation, scoring.condition
        options = {
            "reference": evaluation.reference,
            "extractor": evaluation.extractor,
            "num-images": scoring.images,
            # Image i has the seed SEED + i: the seeds of a study must lie far apart.
            "seed": self.seed * SEEDS_APART,
            "size": condition.size,
            "guidance": condition.guidance,
            "internal-guidance": 1 if condition.internal_guidance is None else condition.internal_guidance,
            "solver": scoring.sampler.solver,
            "steps": scoring.sampler.steps,
            "extrapolation": condition.extrapolation,
            "attention-scale": condition.attention_scale,
            "metrics": CURVE_METRICS if scoring.name == CURVE else METRICS,
            "out": out,
        }
        given = {key: str(value) for key, value in options.items() if value is not None}
        words = [word for key, value in given.items() for word in (f"--{key}", value)]
        if self.recipe.training.init_from:
            words += PLAIN
            if condition.guidance != 1:  # Without guidance there are no channels to guide.
                words += ["--guidance-channels", str(self.dataset.channels)]
        return ["evaluate", str(model), *words]

    def model(self, folder: Path, step: int) -> Path | None:
        """The averaged weights of a step; None if they are missing or incomplete."""
        model = folder / "model" if step == self.steps else exported(folder, step)
        try:
            there = json.loads((model / "config.json").read_bytes())["step"] == step
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return model if there and (model / "model.safetensors").is_file() else None


@cache
def reference_digest(name: str) -> str | None:
    """Names the content of real images; None for those of the package, which do not change."""
    return None if is_fashion(name) or name == EMOJI else open_reference(name, cache_folder()).digest[:16]


@cache
def base_digest(name: str) -> str:
    """Names the weights of a model that trainings start from."""
    return weights_digest(load_pretrained(name).model.state_dict())[:16]


def grouped(runs: Iterable[Run]) -> list[list[Run]]:
    """Puts together the runs of several studies that are one training, in the order of the first of each."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.id, []).append(run)
    return [*found.values()]


def scorings_of(runs: Sequence[Run]) -> dict[tuple[int, str], Scoring]:
    """All scores of one training, which several studies may want, by step and `Run.scoring_id`."""
    return {key: scoring for run in runs for key, scoring in run.scorings_by_id.items()}


def operations_of(runs: Sequence[Run]) -> float:
    """An estimate of the FLOPs of one training and all its scores; scoring takes forward passes alone."""
    costs, scorings = runs[0].costs, scorings_of(runs).values()
    of_image = costs["flops_per_step"] / costs["images_per_step"] / 3
    calls = (s.images * s.sampler.steps * (1 if s.condition.guidance == 1 else 2) for s in scorings)
    return costs["flops_total"] + sum(calls) * of_image


def runs_of(study: Study, table: Table, seeds: int | None = None, only: Sequence[str] = ()) -> list[Run]:
    """All trainings that can be named now, all variants at seed 0 first, then at seed 1, and so on.

    While the table lacks scores of those that tune a variant, these take its place, at the beginning.
    """
    trials: dict[str, list[Run]] = {}
    tuned: dict[str, float | None] = {}
    for name in (name for name in study.variants if not only or name in only):
        own, like = [], study.tuned_like(name)
        if study.tuning is not None:
            own = [Run(study, like, study.tuning.seed, value) for value in study.tuning.values]
        scores = [score for run in own if (score := final_score(run, table)) is not None]
        if len(scores) < len(own):
            trials[like] = own
        else:
            tuned[name] = own[scores.index(min(scores))].tuned if own else None
    left = [run for own in trials.values() for run in own]
    return left + [
        Run(study, name, seed, value) for seed in range(seeds or study.seeds) for name, value in tuned.items()
    ]


def final_score(run: Run, table: Table) -> float | None:
    """The Frechet distance of a training that tunes, infinite if it failed; None until it is known."""
    scoring = run.scorings[-1]
    key = {"run": table.run_of(run.id), "step": scoring.step, "scoring": run.scoring_id(scoring), "metric": "fd"}
    for row in table.rows:
        if row["variant"] != REAL and key.items() <= row.items():
            return math.inf if row["value"] is None else row["value"]
    return None


def frame_of(runs: Sequence[Run], table: Table) -> pd.DataFrame:
    """The figures of these trainings, with the names that their study gives to variants and conditions."""
    keys = [
        (table.run_of(run.id), run.variant, run.seed, s.step, run.scoring_id(s), s.name)
        for run in runs
        for s in scorings_to_judge(run, table)
    ]
    names = pd.DataFrame(keys, columns=["run", "name", "seed", "step", "scoring", "condition"])
    frame = table.frame.drop(columns="seed")
    scores = frame.drop(columns="condition").merge(names)
    trained = frame[frame["condition"] == TRAINING].merge(names[["run", "name", "seed"]].drop_duplicates())
    both = pd.concat([scores, trained], ignore_index=True)
    variants = both["name"].where(both["variant"] != REAL, REAL)
    return both.drop(columns="name").assign(variant=variants)


def scorings_to_judge(run: Run, table: Table) -> list[Scoring]:
    """The scores of a training, without a curve that lacks its end: its last point would be taken for that."""
    unfinished = any(s.name == CURVE and s.step == run.steps for s in run.pending(table))
    return [s for s in run.scorings if not (unfinished and s.name == CURVE)]

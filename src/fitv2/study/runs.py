"""A training of a study and its scores: their identity, the commands that make them, and the lines of the table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ..build import build_base, build_dataset, build_model_config
from ..config import Recipe, build_recipe
from ..data.dataset import Dataset
from ..errors import UserError
from ..hashes import json_digest
from ..provenance import provenance
from ..training.plan import plan_figures
from ..training.run_folder import content_digest, exported, kept_provenance
from ..training.watch import MOST_SKIPPED
from .definition import Condition, Sampler, Study
from .results import CURVE, REAL, TRAINING, Table

# Changes when the same recipe trains to other weights. Version 1 gave times, noise and dropped labels the same random
# numbers whatever the seed, and initialised AdaLN-LoRA otherwise than the authors' code.
TRAINING_VERSION = "training-2"
# Changes when the same model gets other scores.
SCORING_VERSION = "study-3"
# The metrics of `fitv2 evaluate` for a point of a curve, and for a final model.
CURVE_METRICS, METRICS = "fd,accuracy", "fd,kid,pr,accuracy"
# The figures of its result.json that enter the table, and those that have a standard error.
FIGURES = ("fd", "kid", "accuracy", "precision", "recall", "density", "coverage")
ERRORS = {"kid": "kid_error"}
_datasets: dict[str, Dataset] = {}


@dataclass(frozen=True)
class Scoring:
    """The scores of a model at one step under one condition, or under those of one command."""

    step: int
    name: str
    condition: Condition
    sampler: Sampler
    images: int

    @property
    def command(self) -> tuple[Any, ...]:
        """What the scorings of one command share: all but the size, of which a command takes several."""
        return self.step, self.name == CURVE, self.condition.model_copy(update={"size": "own"}), self.sampler


@dataclass(frozen=True, eq=False)
class Run:
    """A training of a variant with a seed; tuned: its value of the setting that the study tunes."""

    study: Study
    variant: str
    seed: int
    tuned: float | None = None

    @property
    def name(self) -> str:
        tuned = "" if self.tuned is None else f" at {self.tuned:g}"
        return f"{self.variant}, seed {self.seed}{tuned}"

    @cached_property
    def recipe(self) -> Recipe:
        return self.study.recipe_of(self.variant, self.seed, self.tuned)

    @cached_property
    def dataset(self) -> Dataset:
        """What it is trained on; equal data is read once."""
        key = json.dumps([self.recipe.data.model_dump(mode="json"), self.recipe.model.patch_size])
        if key not in _datasets:
            _datasets[key] = build_dataset(self.recipe.data, self.recipe.model.patch_size)
        return _datasets[key]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the trained weights: the version of the training, all settings, and the content of the data."""
        settings = comparable(self.recipe)
        return {"training": TRAINING_VERSION, "settings": settings, "data": content_digest(self.dataset)}

    @cached_property
    def id(self) -> str:
        return json_digest(self.identity)[:16]

    def recorded(self, table: Table) -> str:
        """The id under which this training is in the table.

        An earlier version of fitv2 may have known fewer settings: it was the same training if all settings of today
        have the values that its recipe means today.
        """
        if self.id in table.trainings:
            return self.id
        for known, line in table.trainings.items():
            if (line["training"], line["data"]) == (TRAINING_VERSION, self.identity["data"]) and self._means(line):
                return known
        return self.id

    def _means(self, line: dict[str, Any]) -> bool:
        try:
            return comparable(build_recipe(line["settings"])) == self.identity["settings"]
        except (UserError, AttributeError):
            return False

    @cached_property
    def costs(self) -> dict[str, float]:
        """The figures of `fitv2 train --dry-run`."""
        config = build_model_config(self.recipe, self.dataset, build_base(self.recipe.training))
        return plan_figures(self.recipe, self.dataset, config)

    @cached_property
    def operations(self) -> float:
        """An estimate of all that the run takes, for the time left; scoring takes forward passes alone."""
        costs = self.costs
        of_image = costs["flops_per_step"] / costs["tokens_per_step"] * costs["tokens_per_picture"] / 3
        calls = [s.images * s.sampler.steps * (1 if s.condition.guidance == 1 else 2) for s in self.scorings()]
        return costs["flops_total"] + sum(calls) * of_image

    @property
    def steps(self) -> int:
        return self.recipe.training.steps

    def scorings(self) -> list[Scoring]:
        """All scores, in the order of their steps. Of a training that tunes, the final ones that decide."""
        evaluation, found = self.study.evaluation, []
        conditions = {name: c for name, c in evaluation.conditions.items() if c.suits(self.variant)}
        if self.study.tuning is not None and self.seed == self.study.tuning.seed:
            conditions = dict(list(conditions.items())[:1])
        elif evaluation.on_curve.suits(self.variant):
            points = [*(p for p in evaluation.points if p < self.steps), self.steps]
            found = [self._scoring(p, CURVE, evaluation.on_curve, evaluation.images) for p in points]
        return found + [self._scoring(self.steps, name, c, evaluation.final_images) for name, c in conditions.items()]

    def _scoring(self, step: int, name: str, condition: Condition, images: int) -> Scoring:
        return Scoring(step, name, condition, self.study.sampler_of(self.recipe, condition), images)

    def scoring_id(self, scoring: Scoring) -> str:
        """Names all that decides a score besides the model."""
        evaluation = self.study.evaluation
        about = [SCORING_VERSION, evaluation.reference, evaluation.extractor, scoring.images, self.seed]
        about += [scoring.condition.model_dump(mode="json", exclude={"variants", "sampler"}), scoring.name == CURVE]
        return json_digest([*about, scoring.sampler.model_dump(mode="json")])[:16]

    def pending(self, table: Table) -> list[list[Scoring]]:
        """The scorings that the table lacks, those of one command together."""
        run, groups = self.recorded(table), {}
        for scoring in self.scorings():
            if (run, scoring.step, self.scoring_id(scoring)) not in table.scored:
                groups.setdefault(scoring.command, []).append(scoring)
        return list(groups.values())

    # The commands, and what they leave.

    def train_command(self, folder: Path) -> list[str]:
        settings = self.study.settings_of(self.variant, self.seed, self.tuned)
        changes = [word for setting in settings for word in ("--set", setting)]
        return ["train", "--recipe", self.study.recipe, *changes, "--out", str(folder), "--resume"]

    def evaluate_command(self, model: Path, scorings: Sequence[Scoring], out: Path) -> list[str]:
        """Scores a model under conditions that differ in their sizes alone."""
        evaluation, first = self.study.evaluation, scorings[0]
        options: dict[str, Any] = {"reference": evaluation.reference, "extractor": evaluation.extractor}
        options |= {"num": first.images, "seed": self.seed, "guidance": first.condition.guidance}
        options |= {"solver": first.sampler.solver, "steps": first.sampler.steps}
        options |= {"extrapolation": first.condition.extrapolation, "attention-scale": first.condition.attention_scale}
        options |= {"metrics": CURVE_METRICS if first.name == CURVE else METRICS, "out": out}
        words = [word for key, value in options.items() if value is not None for word in (f"--{key}", str(value))]
        sizes = [word for scoring in scorings for word in ("--size", scoring.condition.size)]
        return ["evaluate", str(model), *words, *sizes]

    def model(self, folder: Path, step: int) -> Path:
        """The averaged weights of a step."""
        return folder / "model" if step == self.steps else exported(folder, step)

    def is_trained(self, folder: Path, step: int) -> bool:
        """Whether the averaged weights of a step are there, whole."""
        model = self.model(folder, step)
        try:
            there = json.loads((model / "config.json").read_bytes())["step"] == step
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return there and (model / "model.safetensors").is_file()

    def training_lines(self, folder: Path) -> list[dict[str, Any]]:
        """The training, and what it took up to each point, for the table."""
        log, costs = pd.read_json(folder / "log.jsonl", lines=True), self.costs
        log["wall"] = log["tokens"] / log["tokens_per_second"]
        total = log[["images", "wall", "cpu_seconds"]].cumsum().set_index(log["step"])
        about = {"kind": "training", "run": self.id, "variant": self.variant, "seed": self.seed, "tuned": self.tuned}
        about |= self.identity | {"by": kept_provenance(folder), "parameters": costs["parameters"]}
        about |= {key: costs[key] for key in ("pictures", "epochs", "pictures_per_step", "tokens_per_picture")}
        figures: list[tuple[int, str, float]] = []
        for step in sorted({scoring.step for scoring in self.scorings()} & {*total.index}):
            figures += [(step, "operations", costs["flops_per_step"] * step)]
            figures += [(step, key, float(value)) for key, value in total.loc[step].round(3).items()]
        if has_diverged(folder):
            figures.append((int(log["step"].max()), "diverged", 1.0))
        row = {"variant": self.variant, "seed": self.seed, "condition": TRAINING, "error": None, "n": None}
        row |= {"run": self.id, "scoring": TRAINING, "scored": None}
        return [about, *({**row, "step": step, "metric": key, "value": value} for step, key, value in figures)]

    def score_lines(self, scorings: Sequence[Scoring], result: Path | None, run: str) -> Iterator[dict[str, Any]]:
        """The lines of one `fitv2 evaluate`; result: its result.json, None if the images were not finite."""
        found = {} if result is None else read_result(result)
        for scoring in scorings:
            row = {"variant": self.variant, "seed": self.seed, "step": scoring.step, "condition": scoring.name}
            row |= {"run": run, "scoring": self.scoring_id(scoring), "n": scoring.images}
            if not found:
                yield row | {"metric": "fd", "value": None, "error": None, "scored": provenance()}
                continue
            scores, real, about = found[scoring.condition.size]
            row["scored"] = about | {"settings": row["scoring"], "version": SCORING_VERSION}
            for key in (key for key in FIGURES if key in scores):
                yield row | {"metric": key, "value": scores[key], "error": scores.get(ERRORS.get(key))}
                if key in real and scoring.name != CURVE:
                    told = {"variant": REAL, "n": real.get("drawn"), "range": real.get(f"{key}_range")}
                    yield row | told | {"metric": key, "value": real[key], "error": None}


def comparable(recipe: Recipe) -> dict[str, Any]:
    """The settings that decide weights, all of them; where the data lies does not."""
    tree = recipe.model_dump(mode="json", exclude={"log"})
    return tree | {"data": {key: value for key, value in tree["data"].items() if key not in ("folder",)}}


def read_result(path: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """By size, the scores of samples and of real images in a result.json, and what is to be told of its making.

    Raises UserError if it is not one.
    """
    try:
        content = json.loads(path.read_bytes())
        found = {}
        for result in content["results"]:
            stamp = result["stamp"]
            about = provenance() | content["versions"] | {"reference": stamp["reference_sha256"][:16]}
            about |= {"score": stamp["names"]["fd"], "extractor": stamp["extractor_sha256"][:16]}
            found[stamp["size"]] = result["scores"], result["real"], about
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no result of fitv2 evaluate ({error!r})") from None


def has_diverged(folder: Path) -> bool:
    """Whether the last steps in the log of a training had no finite gradient, which ends it."""
    try:
        # The very last one ends the training before it is logged.
        lines = (folder / "log.jsonl").read_text().splitlines()[1 - MOST_SKIPPED :]
        return len(lines) == MOST_SKIPPED - 1 and all(json.loads(line)["grad_norm"] is None for line in lines)
    except (OSError, ValueError, KeyError):
        return False


def runs_of(study: Study, table: Table, seeds: int | None = None, only: Sequence[str] = ()) -> list[Run]:
    """All trainings that can be named now, all variants at seed 0 first, then at seed 1, and so on.

    While the table lacks scores of trainings that tune, these are all there are.
    """
    names = [name for name in study.variants if not only or name in only]
    tuned: dict[str, float | None] = dict.fromkeys(study.variants)
    if study.tuning is not None:
        needed = dict.fromkeys(study.variants[name].tuned_as or name for name in names)
        trials = [Run(study, name, study.tuning.seed, v) for name in needed for v in study.tuning.values]
        scores = {trial: final_score(trial, table) for trial in trials}
        if None in scores.values():
            return trials
        best = {name: min((t for t in trials if t.variant == name), key=lambda t: scores[t] or 0.0) for name in needed}
        tuned |= {name: best[study.variants[name].tuned_as or name].tuned for name in names}
    return [Run(study, name, seed, tuned[name]) for seed in range(seeds or study.seeds) for name in names]


def final_score(run: Run, table: Table) -> float | None:
    """The Frechet distance of a training that tunes, infinite if it failed; None as long as it is not known."""
    (scoring,), recorded = run.scorings()[-1:], run.recorded(table)
    key = {"run": recorded, "step": scoring.step, "scoring": run.scoring_id(scoring), "metric": "fd"}
    for row in table.rows:
        if row["run"] == recorded and row["metric"] == "diverged":
            return math.inf
        if row["variant"] != REAL and key.items() <= row.items():
            return math.inf if row["value"] is None else row["value"]
    return None


def frame_of(runs: Sequence[Run], table: Table) -> pd.DataFrame:
    """The figures of these trainings, with the names that their study gives to variants and conditions."""
    wanted, names = [], {}
    for run in runs:
        names[run.recorded(table)] = run
        for scoring in run.scorings():
            key = {"run": run.recorded(table), "step": scoring.step, "scoring": run.scoring_id(scoring)}
            wanted.append(key | {"as_condition": scoring.name})
    frame = table.frame
    scores = frame.merge(pd.DataFrame(wanted, columns=["run", "step", "scoring", "as_condition"]))
    scores = scores.assign(condition=scores["as_condition"]).drop(columns="as_condition")
    trained = frame[(frame["condition"] == TRAINING) & frame["run"].isin(list(names))]
    both = pd.concat([scores, trained], ignore_index=True)
    variants = [REAL if row.variant == REAL else names[row.run].variant for row in both.itertuples()]
    return both.assign(variant=variants, seed=[names[run].seed for run in both["run"]])

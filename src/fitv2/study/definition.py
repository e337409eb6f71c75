"""A study as data, read from YAML: variants of a recipe, seeds, how runs are scored, and the claims they decide."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from pydantic import Field, PositiveInt, ValidationError, model_validator

from ..config import complaint, load_recipe
from ..errors import UserError
from ..hashes import json_digest
from ..legacy import KEYS
from ..settings import Recipe, Settings
from ..yaml_text import parse_yaml, read_yaml
from .claims import Claim
from .conditions import Evaluation, Name

# What a study itself decides.
OWN_KEYS = ("training.seed", "log.")
# Steps between those from which a stopped training continues.
CHECKPOINT_EVERY = 250
# Images of a score of a trial.
LEAST_OF_TRIALS = 40


class Variant(Settings):
    """What it changes in the recipe, by dotted keys, and a sentence about it."""

    about: str
    set: dict[str, Any] = Field({})


class Study(Settings):
    """A whole study. recipe, set: what all variants share; remarks: what its authors conclude; imagenet: how the same
    would be run there.
    """

    title: str
    question: str
    recipe: str
    set: dict[str, Any] = Field({})
    seeds: PositiveInt = 3
    variants: dict[Name, Variant] = Field(min_length=1)
    evaluation: Evaluation
    claims: tuple[Claim, ...] = ()
    remarks: str = ""
    paper_cost: bool = Field(False, description="also give the account of the paper's own cost claim, by formula")
    imagenet: str

    @property
    def first(self) -> str:
        """The variant that others are compared with."""
        return next(iter(self.variants))

    @model_validator(mode="after")
    def claims_are_about_what_is_here(self) -> Self:
        for claim in self.claims:
            unknown = sorted(set(claim.measure.variants) - set(self.variants))
            if unknown:
                raise UserError(f"the claim {claim.text!r} is about {', '.join(unknown)}, which is no variant")
        return self

    @model_validator(mode="after")
    def own_keys_are_left_alone(self) -> Self:
        for key in (key for changes in (self, *self.variants.values()) for key in changes.set):
            if key.startswith(OWN_KEYS):
                raise UserError(f"{key} is set by the study itself; leave it away")
        return self

    def recipe_of(self, variant: str, seed: int) -> Recipe:
        """All settings of one run. Raises ValueError where they do not hold."""
        log = {"log.checkpoint_every": CHECKPOINT_EVERY, "log.keep_checkpoints": 1, "log.sample_every": None}
        changes = self.set | self.variants[variant].set | log | {"training.seed": seed}
        try:
            return load_recipe(self.recipe, overrides(changes))
        except UserError as error:
            raise UserError(f"the variant {variant}: {error}") from None

    def view_recipe(self, view: str) -> Recipe:
        """The recipe that all share, with the data as a view sees them."""
        return load_recipe(self.recipe, overrides(self.set | self.evaluation.views[view]))

    def runs(self, seeds: int) -> list[Run]:
        """All variants at seed 0, then at seed 1, and so on: stopped in between, it is a study of fewer seeds."""
        return [Run(v, seed, self.recipe_of(v, seed)) for seed in range(seeds) for v in self.variants]


@dataclass(frozen=True)
class Run:
    """One training and its scores."""

    variant: str
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        return f"{self.variant}-seed{self.seed}"

    @property
    def digest(self) -> str:
        """Of what differs from the defaults, so that a later version with more settings still knows its runs."""
        tree = self.recipe.model_dump(mode="json", exclude_defaults=True, exclude={"log"})
        return json_digest(in_old_words(tree, self.recipe))[:16]


def in_old_words(tree: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """What differs from the defaults as older versions wrote it, so that their runs are still found."""
    old = {new: key for key, new in KEYS.items()}
    words = {("model.prediction", "epsilon"): "noise", ("training.precision", "fp32"): "no"}
    found: dict[str, Any] = {}
    for section, content in tree.items():
        for key, value in content.items():
            if value == {"architecture": "FiTv2", "source": "fashion"}.get(key):
                continue
            dotted = f"{section}.{key}"
            name = old.get(dotted, dotted).partition(".")[2]
            found.setdefault(section, {})[name] = words.get((dotted, value), value) if isinstance(value, str) else value
    budget = {"max_tokens": recipe.data.max_tokens, "preprocessing": recipe.data.preprocessing}
    return found | {"data": found.get("data", {}) | budget}


def overrides(changes: dict[str, Any]) -> list[str]:
    """Dotted keys and values as `load_recipe` takes them."""
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


def definitions() -> Any:
    return files("fitv2.study").joinpath("definitions")


def study_names() -> list[str]:
    """The studies that ship with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in definitions().iterdir() if entry.name.endswith(".yaml"))


def file_of(name: str) -> Path | None:
    """The file of a study that is none of those that ship."""
    return None if name in study_names() else Path(name)


def load_study(name: str) -> Study:
    """A shipped study by name or a YAML file by path. Raises ValueError for an unknown or impossible one."""
    file = file_of(name)
    if file is None:
        tree = parse_yaml(definitions().joinpath(f"{name}.yaml").read_bytes(), name)
    elif file.is_file():
        tree = read_yaml(file)
    else:
        raise UserError(f"there is no study {name!r}; give a YAML file, or one of {', '.join(study_names())}")
    study = build_study(tree, name)
    for variant in study.variants:
        study.recipe_of(variant, 0)
    return study


def build_study(tree: dict[str, Any], name: str) -> Study:
    """A study from a nested dictionary. Raises ValueError."""
    try:
        return Study.model_validate(tree)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'it'}: {complaint(e)}" for e in error.errors()]
        raise UserError(f"the study {name} does not hold: " + "; ".join(problems)) from None


def shortened(study: Study, share: float) -> Study:
    """A trial: every run, its warm-up, its points and the images of scores at this share (0 to 1). Raises UserError."""
    if not 0 < share <= 1:
        raise UserError(f"a trial takes a share of the steps above 0 and at most 1, not {share:g}")
    changes = {
        name: variant.model_copy(update={"set": variant.set | shorter(study.recipe_of(name, 0), share)})
        for name, variant in study.variants.items()
    }
    points = tuple(sorted({max(1, round(point * share)) for point in study.evaluation.points}))
    images = {key: shorter_scores(getattr(study.evaluation, key), share) for key in ("images", "final_images")}
    evaluation = study.evaluation.model_copy(update={"points": points} | images)
    return study.model_copy(update={"variants": changes, "evaluation": evaluation})


def shorter_scores(images: int, share: float) -> int:
    """Of a trial: not so few that no score can be had of them."""
    return min(images, max(LEAST_OF_TRIALS, round(images * share)))


def shorter(recipe: Recipe, share: float) -> dict[str, int]:
    """Rounded down for the warm-up, so that it still ends before the decay begins."""
    training = recipe.training
    steps = max(1, round(training.steps * share))
    return {"training.steps": steps, "training.warmup_steps": int(training.warmup_steps * steps / training.steps)}


def points(recipe: Recipe, evaluation: Evaluation) -> list[int]:
    """The steps at which a run is scored, in their order."""
    last = recipe.training.steps
    return sorted({step for step in evaluation.points if step < last} | {last})

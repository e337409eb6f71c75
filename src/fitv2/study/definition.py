"""A study as a YAML file: variants of a recipe, seeds, conditions under which they are scored, and claims."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, StringConstraints, ValidationError, model_validator

from ..config import Recipe, Settings, complaint, load_recipe
from ..errors import UserError
from ..generate import ADAPTIVE, DIFFUSION_SOLVERS, SOLVER_NAMES
from ..messages import suggestion
from ..yaml_text import parse_yaml, read_yaml
from .claims import Better, Claim, Diverges, Equal, Faster

# What a study itself decides.
OWN_KEYS = ("training.seed", "log.")
LOG = {"log.checkpoint_every": 250, "log.keep_checkpoints": 1, "log.sample_every": None}
# Images of a score of a trial, at least, and the most lines of a plot.
LEAST_OF_TRIALS, MOST_LINES = 40, 6
# Of variants: they name files.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]


class Variant(Settings):
    """Changes of the recipe by dotted keys; tuned_as: the variant whose tuned value it takes, by default itself."""

    about: str
    set: dict[str, Any] = Field({})
    tuned_as: str | None = None


class Tuning(Settings):
    """Tries each value of one setting with some variants, at a seed of its own; the best one is taken."""

    key: str = "training.learning_rate"
    values: tuple[PositiveFloat, ...] = Field(min_length=2)
    variants: tuple[str, ...] = Field(min_length=1)
    seed: PositiveInt = 1000


class Sampler(Settings):
    """A solver of `fitv2 evaluate` and its steps."""

    solver: str = Field(pattern=f"^({'|'.join(name for name in SOLVER_NAMES if name not in ADAPTIVE)})$")
    steps: PositiveInt


SAMPLERS = {"velocity": Sampler(solver="ab2", steps=25), "noise": Sampler(solver="ddim", steps=50)}


class Condition(Settings):
    """How images are requested, in the words of `fitv2 evaluate`; variants: those that can be sampled so."""

    size: str = Field("own", pattern=r"^(own(:[\d.]+)?(-turned)?|[1-9]\d*x[1-9]\d*)$")
    guidance: float = Field(1.5, ge=0)
    sampler: Sampler | None = None
    extrapolation: str | None = None
    attention_scale: str | None = None
    variants: tuple[str, ...] | None = None

    def suits(self, variant: str) -> bool:
        return self.variants is None or variant in self.variants


class Evaluation(Settings):
    """When and how models are scored.

    Attributes:
        reference: The real images, as for `fitv2 evaluate`.
        conditions: By name. Final models are scored under all of them; the first one decides.
        curve: The condition of the points along the training; by default the first one.
        points: Steps of the curve besides the last one, which always is a point.
        images: The number of images for a point of the curve; final_images: for each condition of a final model.
        samplers: By what a network predicts.
    """

    reference: str = "fashion"
    extractor: Literal["garments", "efficientnet-lite0"] = "garments"
    conditions: dict[str, Condition] = Field(min_length=1)
    curve: str = Field(default_factory=lambda given: next(iter(given.get("conditions", {"": None}))))
    points: tuple[PositiveInt, ...] = ()
    images: int = Field(300, ge=LEAST_OF_TRIALS)
    final_images: int = Field(1000, ge=LEAST_OF_TRIALS)
    samplers: dict[Literal["velocity", "noise"], Sampler] = Field({})

    @property
    def deciding(self) -> str:
        return next(iter(self.conditions))


class Study(Settings):
    """A whole study.

    Attributes:
        recipe: The recipe that all variants share, with the changes of `set`.
        lines: The variants that are drawn and shown, 6 at most; by default the first ones.
        equal_within: The fraction by which scores may differ and still count as equivalent.
        change: What would change the answer.
        remarks: What the authors conclude.
        imagenet: How the same study would be run there.
    """

    title: str
    question: str
    recipe: str
    set: dict[str, Any] = Field({})
    seeds: PositiveInt = 3
    variants: dict[Name, Variant] = Field(min_length=1)
    tuning: Tuning | None = None
    evaluation: Evaluation
    claims: tuple[Claim, ...] = ()
    lines: tuple[str, ...] = Field((), max_length=MOST_LINES)
    equal_within: PositiveFloat = 0.1
    change: str = ""
    remarks: str = ""
    imagenet: str = ""

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        conditions = self.evaluation.conditions
        _check_names("evaluation.curve", [self.evaluation.curve], conditions)
        _check_names("lines", self.lines, self.variants)
        for name, condition in conditions.items():
            _check_names(f"the condition {name!r}", condition.variants or (), self.variants)
        if self.tuning is not None:
            _check_names("tuning", self.tuning.variants, self.variants)
            tuned = [variant.tuned_as or name for name, variant in self.variants.items()]
            _check_names("tuned_as", tuned, self.tuning.variants)
        for key in (key for changes in (self, *self.variants.values()) for key in changes.set):
            if key.startswith(OWN_KEYS):
                raise UserError(f"{key} is set by the study itself; omit it")
        return self

    @model_validator(mode="after")
    def _claims_are_measured(self) -> Self:
        conditions = self.evaluation.conditions
        for claim in self.claims:
            measure, where = claim.measure, f"the claim {claim.text!r}"
            _check_names(where, claim.variants, self.variants)
            if isinstance(measure, Diverges):
                continue
            name = self.evaluation.curve if isinstance(measure, Faster) else self.condition_of(measure)
            _check_names(where, [name], conditions)
            if lacking := [variant for variant in claim.variants if not conditions[name].suits(variant)]:
                raise UserError(f"{where} needs the condition {name!r}, which is not for {lacking[0]}")
            if isinstance(measure, Faster):
                decided = self.recipe_of(measure.than, 0).training.steps / measure.at_least
                if measure.cost == "step" and not any(point <= decided for point in self.evaluation.points):
                    raise UserError(
                        f"{where} is decided at step {decided:.0f}, before the first point of the curve: add an "
                        "earlier one to evaluation.points"
                    )
        return self

    def condition_of(self, measure: Better | Equal) -> str:
        return measure.condition or self.evaluation.deciding

    def settings_of(self, variant: str, seed: int, tuned: float | None = None) -> list[str]:
        """The changes of the recipe for one training, as `fitv2 train --set` takes them."""
        changes = self.set | self.variants[variant].set | LOG | {"training.seed": seed}
        if self.tuning is not None and tuned is not None:
            changes[self.tuning.key] = tuned
        if self.evaluation.conditions[self.evaluation.curve].suits(variant):
            changes["log.export_at"] = list(self.evaluation.points)
        return [f"{key}={json.dumps(value)}" for key, value in changes.items()]

    def recipe_of(self, variant: str, seed: int, tuned: float | None = None) -> Recipe:
        """The recipe of one training. Raises UserError if its settings do not hold."""
        try:
            return load_recipe(self.recipe, self.settings_of(variant, seed, tuned))
        except UserError as error:
            raise UserError(f"the variant {variant}: {error}") from None

    def sampler_of(self, recipe: Recipe, condition: Condition) -> Sampler:
        """The sampler of a network of that recipe. Raises UserError if it cannot sample such a network."""
        kind = "noise" if recipe.model.parts["prediction"] == "noise" else "velocity"
        sampler = condition.sampler or (SAMPLERS | self.evaluation.samplers)[kind]
        if (sampler.solver in DIFFUSION_SOLVERS) != (kind == "noise"):
            raise UserError(f"the solver {sampler.solver} is not for networks that predict {kind}: name its variants")
        return sampler


def _check_names(where: str, names: Collection[str], known: Collection[str]) -> None:
    if unknown := [name for name in names if name not in known]:
        near = suggestion(unknown[0], known)
        raise UserError(f"{where} names {unknown[0]!r}, which is none of {', '.join(known)}{near}")


def study_names() -> list[str]:
    """The studies that ship with the package."""
    return sorted(path.name.removesuffix(".yaml") for path in files("fitv2.study").joinpath("definitions").iterdir())


def load_study(name: str) -> Study:
    """Reads a shipped study by name, or a YAML file by path. Raises UserError for an unknown or impossible one."""
    if name in study_names():
        return build_study(
            parse_yaml(files("fitv2.study").joinpath("definitions", f"{name}.yaml").read_bytes(), name), name
        )
    if Path(name).is_file():
        return build_study(read_yaml(Path(name)), name)
    near = suggestion(name, study_names())
    raise UserError(f"there is no study {name!r}; give a YAML file, or one of {', '.join(study_names())}{near}")


def build_study(tree: dict[str, Any], name: str) -> Study:
    """A study from a nested dictionary, every recipe and sampler of it checked. Raises UserError."""
    try:
        study = Study.model_validate(tree)
    except ValidationError as error:
        mistakes = [e for e in error.errors() if e["type"] != "default_factory_not_called"]
        problems = [f"{'.'.join(map(str, e['loc'])) or 'it'}: {complaint(dict(e))}" for e in mistakes]
        raise UserError(f"the study {name} cannot be read: " + "; ".join(problems)) from None
    for variant in study.variants:
        recipe = study.recipe_of(variant, 0)
        for condition in filter(lambda one: one.suits(variant), study.evaluation.conditions.values()):
            study.sampler_of(recipe, condition)
    return study


def shortened(study: Study, fraction: float) -> Study:
    """A trial: every training, its warm-up, its points and the images of its scores at this fraction.

    Raises UserError unless it is above 0 and at most 1.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"a trial takes a fraction of the steps above 0 and at most 1, not {fraction:g}")
    variants = {
        name: variant.model_copy(update={"set": variant.set | dict(_shorter(study.recipe_of(name, 0), fraction))})
        for name, variant in study.variants.items()
    }
    evaluation = study.evaluation
    changes: dict[str, Any] = {"points": tuple(sorted({max(1, round(p * fraction)) for p in evaluation.points}))}
    for key in ("images", "final_images"):
        images = getattr(evaluation, key)
        changes[key] = min(images, max(LEAST_OF_TRIALS, round(images * fraction)))
    return study.model_copy(update={"variants": variants, "evaluation": evaluation.model_copy(update=changes)})


def _shorter(recipe: Recipe, fraction: float) -> Iterator[tuple[str, int]]:
    steps = max(1, round(recipe.training.steps * fraction))
    yield "training.steps", steps
    # Rounded down, so that the warm-up still ends before the decay begins.
    yield "training.warmup_steps", int(recipe.training.warmup_steps * steps / recipe.training.steps)

"""A study as a YAML file: variants of a recipe, seeds, conditions under which they are scored, and claims."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from ..errors import UserError
from ..messages import advised, check_known
from ..model.config import Prediction
from ..sampling.solver_names import ADAPTIVE, DIFFUSION_SOLVERS, SOLVER_NAMES
from ..settings.read import load_recipe
from ..settings.recipe import Recipe, Settings

# Settings of a recipe that a study sets itself.
OWN_KEYS = ("training.seed", "log.")
LOG = {"log.checkpoint_every": 250, "log.keep_checkpoints": 1, "log.sample_every": None}
# The fewest images of a score, also in a trial, and the most lines of a plot.
LEAST_IMAGES, MOST_LINES = 40, 6
# Metrics of `fitv2 evaluate` that are positive, so that they have a logarithm. The kernel distance may be negative.
Metric = Literal["fd", "accuracy", "precision", "recall", "density", "coverage"]
# Variants name files.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]


class Variant(Settings):
    """Changes of the recipe by dotted keys; tuned_as: the variant whose tuned value it takes, by default itself."""

    about: str
    set: dict[str, Any] = Field({})
    tuned_as: str | None = None


class Tuning(Settings):
    """Tries each value of a setting with some variants, at a seed of its own; each variant takes its best one."""

    key: str = "training.learning_rate"
    values: tuple[PositiveFloat, ...] = Field(min_length=2)
    variants: tuple[str, ...] = Field(min_length=1)
    seed: PositiveInt = 1000


class Sampler(Settings):
    """A solver of `fitv2 evaluate` and its steps."""

    solver: str
    steps: PositiveInt

    @field_validator("solver")
    @classmethod
    def _takes_steps(cls, name: str) -> str:
        check_known("solver of a number of steps", name, [name for name in SOLVER_NAMES if name not in ADAPTIVE])
        return name


OF_FLOW = Sampler(solver="ab2", steps=25)
SAMPLERS = {"velocity": OF_FLOW, "data": OF_FLOW, "epsilon": Sampler(solver="ddim", steps=50)}


class Condition(Settings):
    """How images are requested, as options of `fitv2 evaluate`; variants: those that can be sampled so."""

    size: str = Field("own", pattern=r"^(own(:[\d.]+)?(-turned)?|[1-9]\d*x[1-9]\d*)$")
    guidance: float = Field(1.5, ge=0)
    internal_guidance: float | None = Field(None, ge=0)
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
        conditions: By name. Final models are scored under all of them; the first one decides claims that name none.
        curve: The condition of the points along the training; by default the first one.
        points: Steps of the curve besides the last one; without any, there is no curve.
        images: The number of images for a point of the curve; final_images: for each condition of a final model.
        samplers: By what a network predicts.
    """

    reference: str = "fashion"
    extractor: Literal["garments", "efficientnet-lite0"] = "garments"
    conditions: dict[str, Condition] = Field(min_length=1)
    curve: str = Field(default_factory=lambda validated: next(iter(validated["conditions"])))
    points: tuple[PositiveInt, ...] = ()
    images: int = Field(300, ge=LEAST_IMAGES)
    final_images: int = Field(1000, ge=LEAST_IMAGES)
    samplers: dict[Prediction, Sampler] = Field({})


class Comparison(Settings):
    """What all measures of claims share: a variant, and the one or more that it is compared with."""

    of: str
    than: str | tuple[str, ...]

    @property
    def others(self) -> tuple[str, ...]:
        return (self.than,) if isinstance(self.than, str) else self.than

    @model_validator(mode="after")
    def _differ(self) -> Self:
        compared = (self.of, *self.others)
        if twice := [name for name in compared if compared.count(name) > 1]:
            raise UserError(f"{twice[0]} is named twice, and a claim compares different variants")
        if len(compared) < 2:
            raise UserError(f"{self.of} is compared with no other variant")
        return self


class Better(Comparison):
    """The final score is better than that of each other variant; condition: by default the one that decides."""

    kind: Literal["better"]
    metric: Metric = "fd"
    condition: str | None = None


class Equal(Comparison):
    """The final scores differ by less than the fraction `within`."""

    kind: Literal["equal"]
    than: str
    within: PositiveFloat = 0.1
    metric: Metric = "fd"
    condition: str | None = None


class Faster(Comparison):
    """`of` reaches the last score of the curve of `than` at 1 / `at_least` of its cost.

    The score of `of` at that fraction of the cost decides: it must be better than the last one of `than`. A variant
    that never gets there therefore needs no cost.
    """

    kind: Literal["faster"]
    than: str
    at_least: float = Field(gt=1)
    cost: Literal["step", "operations", "cpu_seconds"] = "step"

    @property
    def unit(self) -> str:
        """The cost in words."""
        return {"step": "steps", "operations": "FLOPs", "cpu_seconds": "CPU seconds"}[self.cost]


class Diverges(Comparison):
    """The training of `of` diverges and that of `than` does not."""

    kind: Literal["diverges"]
    than: str


class Claim(Settings):
    """A sentence, the paper's figure for it, and how the study measures it."""

    text: str
    paper: str
    measure: Annotated[Better | Equal | Faster | Diverges, Field(discriminator="kind")]

    @property
    def variants(self) -> tuple[str, ...]:
        return self.measure.of, *self.measure.others


class Study(Settings):
    """A whole study.

    Attributes:
        recipe: The recipe that all variants share, with the changes of `set`.
        lines: The variants that are drawn and shown, 6 at most; by default the first ones.
        equal_within: The fraction by which scores may differ and still count as equivalent.
        change: What would change the answer.
        remarks: What the authors conclude.
        imagenet: How to run the same study there.
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
        _check_names("evaluation.curve", [self.evaluation.curve], self.evaluation.conditions)
        _check_names("lines", self.lines, self.variants)
        for name, condition in self.evaluation.conditions.items():
            _check_names(f"the condition {name!r}", condition.variants or (), self.variants)
        if self.tuning is not None:
            _check_names("tuning", self.tuning.variants, self.variants)
            _check_names("tuned_as", [self.tuned_like(name) for name in self.variants], self.tuning.variants)
        for key in (key for changes in (self, *self.variants.values()) for key in changes.set):
            if key.startswith(OWN_KEYS):
                raise UserError(f"{key} is set by the study itself; omit it")
        for claim in self.claims:
            _check_names(f"the claim {claim.text!r}", claim.variants, self.variants)
            if not isinstance(claim.measure, Diverges):
                self._check_condition(claim, claim.measure)
        return self

    def _check_condition(self, claim: Claim, measure: Better | Equal | Faster) -> None:
        where, name = f"the claim {claim.text!r}", self.condition_of(measure)
        _check_names(where, [name], self.evaluation.conditions)
        suits = self.evaluation.conditions[name].suits
        if lacking := [variant for variant in claim.variants if not suits(variant)]:
            raise UserError(f"{where} needs the condition {name!r}, which is not for {lacking[0]}")
        if self.evaluation.conditions[name].size.startswith("own"):
            first, *others = (self.recipe_of(variant, 0).data for variant in claim.variants)
            if any(other != first for other in others):
                raise UserError(
                    f"{where} compares variants whose images in their own sizes differ, because their data does: give "
                    f"the condition {name!r} a size, such as 28x20"
                )
        if isinstance(measure, Faster):
            steps = self.recipe_of(measure.than, 0).training.steps
            decided = steps / measure.at_least if measure.cost == "step" else steps
            if not any(point <= decided for point in self.evaluation.points):
                raise UserError(
                    f"{where} is decided at step {decided:.0f}, before the first point of the curve: add an earlier "
                    "one to evaluation.points"
                )

    def condition_of(self, measure: Better | Equal | Faster) -> str:
        """The name of the condition under which a claim is measured."""
        if isinstance(measure, Faster):
            return self.evaluation.curve
        return measure.condition or next(iter(self.evaluation.conditions))

    def tuned_like(self, variant: str) -> str:
        """The variant whose tuned value this one takes: itself, unless it names another."""
        return variant if self.tuning is None else self.variants[variant].tuned_as or variant

    @property
    def drawn(self) -> tuple[str, ...]:
        """The variants that are drawn and shown."""
        return self.lines or tuple(self.variants)[:MOST_LINES]

    @property
    def deciding(self) -> set[str]:
        """The names of the conditions by which claims are decided."""
        measures = (claim.measure for claim in self.claims)
        return {self.condition_of(measure) for measure in measures if not isinstance(measure, Diverges)}

    def shown_of(self, variant: str) -> str:
        """The name of the condition whose images a page shows: of the first claim about the variant, or its first."""
        for claim in self.claims:
            if variant in claim.variants and not isinstance(claim.measure, Diverges):
                return self.condition_of(claim.measure)
        return next(name for name, condition in self.evaluation.conditions.items() if condition.suits(variant))

    def settings_of(self, variant: str, seed: int, tuned: float | None = None) -> list[str]:
        """The changes of the recipe for one training, as `fitv2 train --set` takes them."""
        changes = self.set | self.variants[variant].set | LOG | {"training.seed": seed}
        if self.tuning is not None and tuned is not None:
            changes[self.tuning.key] = tuned
        if self.evaluation.conditions[self.evaluation.curve].suits(variant):
            changes["log.export_at"] = list(self.evaluation.points)
        return [f"{key}={json.dumps(value)}" for key, value in changes.items()]

    def recipe_of(self, variant: str, seed: int, tuned: float | None = None) -> Recipe:
        """The recipe of one training. Raises UserError if its settings are not valid."""
        try:
            return load_recipe(self.recipe, self.settings_of(variant, seed, tuned))
        except UserError as error:
            raise UserError(f"the variant {variant}: {error}") from None

    def sampler_of(self, recipe: Recipe, condition: Condition) -> Sampler:
        """The sampler for a network of that recipe. Raises UserError if it cannot sample such a network."""
        kind = recipe.model.prediction
        few = recipe.training.objective == "transition"
        if few and (condition.sampler is None or condition.sampler.solver != "transition" or condition.guidance != 1):
            raise UserError("networks trained for few steps need guidance 1 and a sampler with the solver transition")
        sampler = condition.sampler or (SAMPLERS | self.evaluation.samplers)[kind]
        if (sampler.solver in DIFFUSION_SOLVERS) != (kind == "epsilon"):
            raise UserError(f"the solver {sampler.solver} is not for networks that predict {kind}: name its variants")
        return sampler


def _check_names(where: str, names: Collection[str], known: Collection[str]) -> None:
    if unknown := [name for name in names if name not in known]:
        advice = advised(unknown[0], known, f"choose from {', '.join(known)}")
        raise UserError(f"{where} names {unknown[0]!r}, which does not exist{advice}")

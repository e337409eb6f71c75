"""A study as a YAML file: variants of a recipe, seeds, conditions under which they are scored, and claims."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, StringConstraints, ValidationError, model_validator

from ..config import Recipe, Settings, complaint, load_recipe
from ..errors import UserError
from ..generate import ADAPTIVE, DIFFUSION_SOLVERS, SOLVER_NAMES
from ..messages import suggestion
from ..yaml_text import parse_yaml, read_yaml
from .claims import Best, Better, Claim, Diverges, Faster

# What a study itself decides.
OWN_KEYS = ("training.seed", "log.")
# Steps between those from which a stopped training continues.
CHECKPOINT_EVERY = 250
# Images of a score of a trial, at least, and the most lines of a plot.
LEAST_OF_TRIALS, MOST_LINES = 40, 6
# Of variants: they name files.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]


class Variant(Settings):
    """A sentence about it, and its changes of the recipe by dotted keys; tuned_as: the variant whose tuned value it
    takes.
    """

    about: str
    set: dict[str, Any] = Field({})
    tuned_as: str | None = None


class Tuning(Settings):
    """Tries each value of one setting with the variants named, at a seed of its own, and takes the best."""

    key: str = "training.learning_rate"
    values: tuple[PositiveFloat, ...] = Field(min_length=2)
    variants: tuple[str, ...] = Field(min_length=1)
    seed: PositiveInt = 1000


class Sampler(Settings):
    """A solver of `fitv2 evaluate` and its steps; not one that chooses its own."""

    solver: str
    steps: PositiveInt

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        if self.solver not in SOLVER_NAMES or self.solver in ADAPTIVE:
            raise UserError(f"the solver {self.solver!r} is unknown, or chooses its own steps; name another")
        return self


class Condition(Settings):
    """How images are requested.

    Attributes:
        size: As for `fitv2 evaluate`: "own" or HEIGHTxWIDTH in pixels.
        sampler: Another one than that of the evaluation.
        variants: Those that can be sampled so; by default all.
    """

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
        images: The number of images for a point of the curve.
        final_images: The number of images for each condition of a final model.
        samplers: By what a network predicts.
    """

    reference: str = "fashion"
    extractor: Literal["garments", "efficientnet-lite0"] = "garments"
    conditions: dict[str, Condition] = Field(min_length=1)
    curve: str | None = None
    points: tuple[PositiveInt, ...] = ()
    images: int = Field(300, ge=LEAST_OF_TRIALS)
    final_images: int = Field(1000, ge=LEAST_OF_TRIALS)
    samplers: dict[Literal["velocity", "noise"], Sampler] = Field(
        {"velocity": Sampler(solver="ab2", steps=25), "noise": Sampler(solver="ddim", steps=50)}
    )

    @property
    def deciding(self) -> str:
        return next(iter(self.conditions))

    @property
    def on_curve(self) -> Condition:
        return self.conditions[self.curve or self.deciding]


class Study(Settings):
    """A whole study.

    Attributes:
        recipe: The recipe that all variants share, with the changes of `set`.
        lines: The variants whose curves are drawn, 6 at most; by default the first ones.
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
        def check(names: tuple[str, ...] | None, where: str, known: Any = self.variants) -> None:
            if unknown := sorted(set(names or ()) - set(known)):
                near = suggestion(unknown[0], known)
                raise UserError(f"{where} names {unknown[0]!r}, which is none of {', '.join(known)}{near}")

        check((self.evaluation.curve or self.evaluation.deciding,), "evaluation.curve", self.evaluation.conditions)
        check(self.lines, "lines")
        for name, condition in self.evaluation.conditions.items():
            check(condition.variants, f"the condition {name!r}")
        for claim in self.claims:
            check(claim.measure.variants, f"the claim {claim.text!r}")
            if isinstance(claim.measure, Better | Best) and claim.measure.condition is not None:
                check((claim.measure.condition,), f"the claim {claim.text!r}", self.evaluation.conditions)
            self._check_measurable(claim)
        if self.tuning is not None:
            check(self.tuning.variants, "tuning")
            check(tuple(v.tuned_as or name for name, v in self.variants.items()), "tuned_as", self.tuning.variants)
        return self

    def _check_measurable(self, claim: Claim) -> None:
        """Raises UserError if the evaluation never measures what decides the claim."""
        measure, evaluation = claim.measure, self.evaluation
        if isinstance(measure, Diverges):
            return
        curve = evaluation.curve or evaluation.deciding
        name = curve if isinstance(measure, Faster) else measure.condition or evaluation.deciding
        if lacking := [v for v in measure.variants if not evaluation.conditions[name].suits(v)]:
            raise UserError(f"the claim {claim.text!r} needs the condition {name!r}, which is not for {lacking[0]}")
        if isinstance(measure, Faster) and measure.cost == "step":
            steps = self.recipe_of(measure.than, 0).training.steps
            if min(evaluation.points, default=steps) > steps / measure.at_least:
                raise UserError(
                    f"the claim {claim.text!r} is decided at step {steps / measure.at_least:.0f}, before the first "
                    "point of the curve: add an earlier one to evaluation.points"
                )

    @model_validator(mode="after")
    def _own_keys_are_free(self) -> Self:
        for key in (key for changes in (self, *self.variants.values()) for key in changes.set):
            if key.startswith(OWN_KEYS):
                raise UserError(f"{key} is set by the study itself; omit it")
        return self

    def settings_of(self, variant: str, seed: int, tuned: float | None = None) -> list[str]:
        """The changes of the recipe for one training, as `fitv2 train --set` takes them."""
        changes = self.set | self.variants[variant].set
        if tuned is not None and self.tuning is not None:
            changes |= {self.tuning.key: tuned}
        changes |= {"log.checkpoint_every": CHECKPOINT_EVERY, "log.keep_checkpoints": 1, "log.sample_every": None}
        if self.evaluation.on_curve.suits(variant):
            changes |= {"log.export_at": list(self.evaluation.points)}
        return [f"{key}={json.dumps(value)}" for key, value in (changes | {"training.seed": seed}).items()]

    def recipe_of(self, variant: str, seed: int, tuned: float | None = None) -> Recipe:
        """The recipe of one training. Raises UserError if its settings do not hold."""
        try:
            return load_recipe(self.recipe, self.settings_of(variant, seed, tuned))
        except UserError as error:
            raise UserError(f"the variant {variant}: {error}") from None

    def sampler_of(self, recipe: Recipe, condition: Condition) -> Sampler:
        """The sampler of a network of that recipe. Raises UserError if it cannot sample such a network."""
        kind = "noise" if recipe.model.parts["prediction"] == "noise" else "velocity"
        sampler = condition.sampler or (Evaluation.model_fields["samplers"].default | self.evaluation.samplers)[kind]
        if (sampler.solver in DIFFUSION_SOLVERS) != (kind == "noise"):
            raise UserError(f"the solver {sampler.solver} is not for networks that predict {kind}: set the variants")
        return sampler


def definitions() -> Any:
    return files("fitv2.study").joinpath("definitions")


def study_names() -> list[str]:
    """The studies that ship with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in definitions().iterdir() if entry.name.endswith(".yaml"))


def load_study(name: str) -> Study:
    """Reads a shipped study by name, or a YAML file by path. Raises UserError for an unknown or impossible one."""
    if name in study_names():
        tree = parse_yaml(definitions().joinpath(f"{name}.yaml").read_bytes(), name)
    elif Path(name).is_file():
        tree = read_yaml(Path(name))
    else:
        near = suggestion(name, study_names())
        raise UserError(f"there is no study {name!r}; give a YAML file, or one of {', '.join(study_names())}{near}")
    return build_study(tree, name)


def build_study(tree: dict[str, Any], name: str) -> Study:
    """A study from a nested dictionary, every recipe and sampler of it checked. Raises UserError."""
    try:
        study = Study.model_validate(tree)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'it'}: {complaint(dict(e))}" for e in error.errors()]
        raise UserError(f"the study {name} cannot be read: " + "; ".join(problems)) from None
    for variant in study.variants:
        for condition in study.evaluation.conditions.values():
            recipe = study.recipe_of(variant, 0)
            if condition.suits(variant):
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
    changes = {"points": tuple(sorted({max(1, round(point * fraction)) for point in evaluation.points}))}
    for key in ("images", "final_images"):
        images = getattr(evaluation, key)
        changes[key] = min(images, max(LEAST_OF_TRIALS, round(images * fraction)))
    return study.model_copy(update={"variants": variants, "evaluation": evaluation.model_copy(update=changes)})


def _shorter(recipe: Recipe, fraction: float) -> Iterator[tuple[str, int]]:
    training = recipe.training
    steps = max(1, round(training.steps * fraction))
    yield "training.steps", steps
    # Rounded down, so that the warm-up still ends before the decay begins.
    yield "training.warmup_steps", int(training.warmup_steps * steps / training.steps)

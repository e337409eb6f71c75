"""Reads the file of a study and checks it; shortens it for a trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import UserError
from ..messages import advised
from ..settings.read import complaint
from ..settings.recipe import Recipe
from ..settings.yaml_text import read_yaml
from .definition import LEAST_IMAGES, Study

SHIPPED = Path(__file__).parent / "definitions"


def study_names() -> list[str]:
    """The studies that ship with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_study(name: str) -> Study:
    """Reads a shipped study by name, or a YAML file by path. Raises UserError for an unknown or impossible one."""
    names = study_names()
    path = SHIPPED / f"{name}.yaml" if name in names else Path(name)
    if not path.is_file():
        advice = f"give a YAML file, or one of {', '.join(names)}"
        raise UserError(f"there is no study {name!r}{advised(name, names, advice)}")
    return build_study(read_yaml(path), name)


def build_study(tree: dict[str, Any], name: str) -> Study:
    """A study from a nested dictionary, with all its recipes and samplers checked. Raises UserError."""
    try:
        study = Study.model_validate(tree)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'it'}: {complaint(dict(e))}" for e in error.errors()]
        raise UserError(f"the study {name} cannot be read: " + "; ".join(problems)) from None
    recipes = {variant: study.recipe_of(variant, 0) for variant in study.variants}
    _check_differences(study, recipes)
    for variant, recipe in recipes.items():
        for condition in study.evaluation.conditions.values():
            if condition.suits(variant):
                study.sampler_of(recipe, condition)
    return study


def _check_differences(study: Study, recipes: dict[str, Recipe]) -> None:
    """Raises UserError if two variants are one training, which would count twice in every comparison."""
    known: dict[tuple[str, ...], str] = {}
    for name in study.variants:
        settings = tuple(recipes[key].model_dump_json(exclude={"log"}) for key in (name, study.tuned_like(name)))
        if (other := known.setdefault(settings, name)) != name:
            raise UserError(f"the variants {other} and {name} have the same settings: change or remove one of them")


def shortened(study: Study, fraction: float) -> Study:
    """A trial: every training, its warm-up, its points and the images of its scores at this fraction.

    Raises UserError unless it is above 0 and at most 1.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"a trial takes a fraction of the steps above 0 and at most 1, not {fraction:g}")
    variants = {}
    for name, variant in study.variants.items():
        training = study.recipe_of(name, 0).training
        steps = max(1, round(training.steps * fraction))
        # Rounded down, so that the warm-up still ends before the decay begins.
        warmup_steps = int(training.warmup_steps * steps / training.steps)
        shorter = {"training.steps": steps, "training.warmup_steps": warmup_steps}
        variants[name] = variant.model_copy(update={"set": variant.set | shorter})
    evaluation = study.evaluation
    changes: dict[str, Any] = {"points": tuple(sorted({max(1, round(p * fraction)) for p in evaluation.points}))}
    for key in ("images", "final_images"):
        images = getattr(evaluation, key)
        changes[key] = min(images, max(LEAST_IMAGES, round(images * fraction)))
    return study.model_copy(update={"variants": variants, "evaluation": evaluation.model_copy(update=changes)})

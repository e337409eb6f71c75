"""Recipes: read from YAML, changed from the command line, checked before anything starts."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ..errors import UserError
from ..legacy import RECIPES, current_recipe, current_setting, without_defaults
from ..messages import advised, suggestion_of
from .autoencoder import AUTOENCODER_SECTIONS, AutoencoderRecipe
from .recipe import ARCHITECTURES, SECTIONS, TIMES, Recipe, numbers_of_others
from .yaml_text import parse_yaml, read_yaml

logger = logging.getLogger(__name__)


Validated = TypeVar("Validated", bound=BaseModel)
Sections = Mapping[str, tuple[type[BaseModel], ...]]


def valid_keys(sections: Sections = SECTIONS) -> list[str]:
    """Returns every key that some recipe of these sections can have, dotted."""
    keys = (f"{section}.{key}" for section, kinds in sections.items() for kind in kinds for key in kind.model_fields)
    return list(dict.fromkeys(keys))


def recipe_folder() -> Traversable:
    """Returns the folder of the recipes that ship with the package."""
    return files("fitv2").joinpath("recipes")


def recipe_names() -> list[str]:
    """Returns the names of the recipes that ship with the package."""
    return sorted(
        entry.name.removesuffix(".yaml") for entry in recipe_folder().iterdir() if entry.name.endswith(".yaml")
    )


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a shipped recipe or a YAML file, and replaces settings by `overrides`, as section.key=value.

    Raises UserError if the recipe, a key or a value is unknown; the message names the nearest valid key.
    """
    name = RECIPES.get(name, name)
    if name in recipe_names():
        tree = parse_yaml(recipe_folder().joinpath(f"{name}.yaml").read_bytes(), name)
    elif Path(name).is_file():
        tree = read_yaml(Path(name))
    else:
        advice = f"give a YAML file, or one of {', '.join(recipe_names())}"
        raise UserError(f"there is no recipe {name!r}{advised(name, recipe_names(), advice)}")
    return build_recipe(tree, overrides)


def build_recipe(tree: Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Builds a recipe from a nested dictionary and overrides, as `load_recipe`. An empty section is all defaults."""
    merged = current_recipe(deepcopy(dict(tree)))
    model = merged.get("model")
    before = model.get("architecture", "FiTv2") if isinstance(model, dict) else "FiTv2"
    given = {apply_override(merged, override) for override in overrides}
    drop_what_others_replace(merged, before, given)
    if isinstance(merged.get("model"), dict):
        merged["model"] = without_defaults(merged["model"])
    return validated(Recipe, merged, SECTIONS)


def drop_what_others_replace(tree: dict[str, Any], before: str, given: set[str]) -> None:
    """Removes settings of a file that have no effect with those that override it, unless they are given themselves.

    So every recipe works for the baselines and for transitions: another architecture predicts what it always does,
    and transitions, diffusion and other densities have no use for the file's times.

    Args:
        tree: The recipe with its overrides.
        before: The architecture that the file has.
        given: The keys of the overrides.
    """
    model, training = tree.get("model", {}), tree.get("training", {})
    if not (isinstance(model, dict) and isinstance(training, dict)):
        return
    architecture = model.get("architecture", "FiTv2")
    if architecture != before and "model.prediction" not in given:
        model.pop("prediction", None)
    default = ARCHITECTURES[architecture].model_fields["prediction"].default if architecture in ARCHITECTURES else None
    useless = numbers_of_others(training["time_density"]) if "training.time_density" in given else []
    diffusion = model.get("prediction", default) == "epsilon" and {"model.architecture", "model.prediction"} & given
    if diffusion or ("training.objective" in given and training["objective"] == "transition"):
        useless = [*TIMES]
    for key in useless:
        if f"training.{key}" not in given:
            training.pop(key, None)


def build_autoencoder_recipe(tree: Mapping[str, Any], overrides: Sequence[str] = ()) -> AutoencoderRecipe:
    """Builds the recipe of an autoencoder, like `build_recipe`."""
    merged = deepcopy(dict(tree))
    for override in overrides:
        apply_override(merged, override)
    return validated(AutoencoderRecipe, merged, AUTOENCODER_SECTIONS)


def validated(kind: type[Validated], tree: Mapping[str, Any], sections: Sections) -> Validated:
    """Returns the recipe of a tree. Raises UserError for what its settings do not allow."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        problems = list(dict.fromkeys(recipe_problem(problem, sections) for problem in error.errors()))
        raise UserError("the recipe does not hold: " + "; ".join(problems)) from None


def apply_override(tree: dict[str, Any], override: str) -> str:
    """Sets `section.key=value` in a nested dictionary; returns the key. Raises UserError for anything else."""
    key, equals, value = override.partition("=")
    if not equals:
        raise UserError(f"{override!r} is not of the form section.key=value, such as training.steps=2000")
    given = key.strip()
    key, content = current_setting(given, parse_value(value, override))
    if key != given:
        logger.info("%s is called %s now", given, key)
    *sections, leaf = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise UserError(f"{override!r} cannot be set: {section!r} holds {tree!r}, not keys with values")
    tree[leaf] = content
    return key


def parse_value(text: str, override: str) -> Any:
    """The value of an override, as YAML has it. Bytes that are not UTF-8, as in names of folders, are text as it is."""
    if any("\udc80" <= character <= "\udcff" for character in text):
        return text
    return parse_yaml(f"value: {text}", override)["value"]


def recipe_problem(error: Mapping[str, Any], sections: Sections = SECTIONS) -> str:
    """One of pydantic's errors in a recipe, as a sentence that begins with its key."""
    section, *path = map(str, error["loc"]) if error["loc"] else ("",)
    kind = path.pop(0) if len(sections.get(section, ())) > 1 and path else ""  # The tag of a discriminated union.
    key = ".".join([section, *path])
    if error["type"] != "extra_forbidden":
        return f"{key}: {complaint(error)}" if key else complaint(error)
    if key in valid_keys(sections):
        return f"{key}: no effect with {'architecture' if section == 'model' else 'source'} {kind}; remove it"
    if isinstance(error["input"], dict) and error["input"]:  # A section that does not exist: its first key.
        key = f"{key}.{next(iter(error['input']))}"
    return f"there is no setting {key!r}; the nearest is {nearest_key(key, sections)!r}"


# Pydantic's types of errors, for people who do not write Python.
WORDS = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "must be a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "must be true or false"),
    **dict.fromkeys(("tuple_type", "list_type"), "must be a list, such as [1, 2]"),
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "must hold keys with values"),
    "string_type": "must be text, in quotes if it looks like something else",
    "union_tag_invalid": "{discriminator} must be one of {expected_tags}",
}


def complaint(error: Mapping[str, Any]) -> str:
    """Returns our own sentences as they are, and pydantic's with the value that is wrong."""
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    given, context = error["input"], error.get("ctx", {})
    if error["type"] == "union_tag_invalid":
        given = context["tag"]
    known = context.get("expected") or context.get("expected_tags") or ""
    said = WORDS[error["type"]].format(**context) if error["type"] in WORDS else error["msg"]
    return f"{said} (given: {given!r}){suggestion_of(str(given), known)}"


# What other trainers call a setting, by a part of its name; the first part found counts.
ELSEWHERE = {
    "warmup": "warmup_steps",
    "scheduler": "decay_fraction",
    "lr": "learning_rate",
    "wd": "weight_decay",
    "ema": "ema_decay",
    **dict.fromkeys(("accum", "accumulate", "accumulation"), "batches_per_step"),
    "batch": "max_tokens_per_batch",
    **dict.fromkeys(("epochs", "iterations", "iters", "train"), "steps"),
    **dict.fromkeys(("dropout", "uncond"), "class_dropout_prob"),
    "clip": "max_grad_norm",
    "betas": "beta2",
    "heads": "heads",
    **dict.fromkeys(("hidden", "dim"), "width"),
    "layers": "depth",
    **dict.fromkeys(("resolution", "image"), "max_tokens"),
    **dict.fromkeys(("amp", "dtype", "fp16", "bf16"), "precision"),
    "save": "checkpoint_every",
    **dict.fromkeys(("eval", "val", "validation"), "holdout"),
    **dict.fromkeys(("wandb", "tensorboard"), "trackers"),
    **dict.fromkeys(("fsdp", "ddp"), "sharding"),
}


def nearest_key(key: str, sections: Sections = SECTIONS) -> str:
    """Returns the valid key that is meant by a wrong one, as other trainers use it, or that is most like it.

    By its whole name or by that without the section.
    """
    valid_ones = valid_keys(sections)
    candidates = {valid: valid for valid in valid_ones} | {valid.split(".")[1]: valid for valid in valid_ones}
    leaf = key.split(".")[-1]
    parts = leaf.lower().replace("-", "_").split("_")
    if known := [name for part, name in ELSEWHERE.items() if part in parts and name in candidates]:
        return candidates[known[0]]
    near = difflib.get_close_matches(key, candidates, 1, 0.4) or difflib.get_close_matches(leaf, candidates, 1, 0.0)
    return candidates[near[0]]

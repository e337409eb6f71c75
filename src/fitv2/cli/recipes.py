"""`fitv2 recipes`, and which recipe a training takes."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError

if TYPE_CHECKING:
    from ..settings import Recipe

# The device whose time the table names: the peak of an A100 in bfloat16, and the fraction of it that training reaches.
A100_FLOPS, UTILISATION = 312e12, 0.4
ABOUT_TIME = (
    "\nTime: of the matrix products alone at 40 % of an A100's peak; small networks take longer. For this machine:\n"
    "fitv2 train --recipe NAME --dry-run"
)
# Channels and classes of the data that a recipe is meant for, by its patch size: latents, garments, colour images.
CHANNELS, CLASSES = {2: 4, 4: 1, 8: 3}, {2: 1000, 4: 10, 8: 10}


def recipes(as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False) -> None:
    """List the recipes for 'fitv2 train --recipe NAME': what they train, the size of the network, and the time.

    Times are those of the matrix products at 40 % of an A100's peak (312 TFLOP/s); small networks take longer there.
    'fitv2 train --recipe NAME --dry-run' measures a step on this machine instead.
    """
    from rich.console import Console
    from rich.table import Table

    from ..config import recipe_names

    rows = [recipe_row(name) for name in recipe_names()]
    if as_json:
        print(json.dumps(rows))
        return
    table = Table("recipe", "parameters", "steps", "A100 time", "trains", box=None, pad_edge=False)
    for row in rows:
        numbers = f"{row['parameters'] / 1e6:,.1f} M", f"{row['steps']:,}", hours(row["device_hours"])
        table.add_row(row["recipe"], *numbers, row["about"])
    Console().print(table)
    print(ABOUT_TIME)


def recipe_row(name: str) -> dict[str, Any]:
    """Returns the name, size and cost of a shipped recipe, and the first line of its file."""
    from ..config import load_recipe, recipe_folder
    from ..model.presets import config_of
    from ..profiling.formula import parameters
    from ..profiling.training_plan import training_flops

    recipe = load_recipe(name)
    model, training = recipe.model, recipe.training
    data: dict[str, Any] = {"in_channels": CHANNELS[model.patch_size], "num_classes": CLASSES[model.patch_size]}
    config = config_of(**model.model_dump(exclude={"extrapolation"}), **data)
    image = recipe.data.max_tokens
    images = training.max_tokens_per_batch * training.batches_per_step / image
    flops = training_flops(recipe, config, [image]) * images * training.steps
    first_line = recipe_folder().joinpath(f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
    return {
        "recipe": name,
        "about": first_line.removeprefix("# ").rstrip("."),
        "parameters": parameters(config),
        "steps": training.steps,
        "device_hours": flops / (A100_FLOPS * UTILISATION) / 3600,
    }


def hours(number: float) -> str:
    if number >= 1:
        return f"{number:,.0f} h"
    return f"{60 * number:.0f} min" if number >= 1 / 60 else "< 1 min"


def choose_recipe(
    name: str | None, data: str | None, base: str | None, run: Path, resume: bool, settings: list[str]
) -> Recipe:
    """Returns the recipe of the run that is resumed, or else the named one, with the settings on top.

    Args:
        name: The recipe of --recipe; None: the one that suits the data.
        data: The folder of --data.
        base: The model of --init-from.
        run: The folder of the run.
        resume: Whether to continue the run there, if there is one.
        settings: section.key=value.
    """
    from ..config import load_recipe
    from ..legacy import KEYS
    from ..training.run_folder import resumed_recipe

    overrides = [*data_override(data), *settings]
    kept = resumed_recipe(run, overrides) if resume else None
    if kept is not None:
        if base not in (None, kept.training.init_from):
            raise UserError(f"{run} already holds a run, which --init-from cannot change; choose another --out")
        if name is not None:
            given = [override.partition("=")[0].strip() for override in overrides]
            warn_of_others(name, load_recipe(name), kept, [KEYS.get(key, key) for key in given])
        return kept
    if name is None and data is None and base is None:
        raise UserError(f"there is no run in {run} to continue; to begin one there, give --recipe or --data")
    return load_recipe(name or recipe_for(data), [*base_overrides(base), *overrides])


def recipe_for(data: str | None) -> str:
    """The recipe for a folder of images or of latents."""
    from ..build import holds_latents
    from ..settings import FolderSettings

    return "latents" if data is not None and holds_latents(FolderSettings(source=data)) else "images"


def base_overrides(base: str | None) -> list[str]:
    """--init-from as settings: that model, and a network of its architecture and size."""
    from ..build import model_settings
    from ..checkpoints.model_folder import load_pretrained

    if base is None:
        return []
    network = model_settings(load_pretrained(base, None).model.config)
    values = {"training.init_from": base, **{f"model.{key}": value for key, value in network.items()}}
    return [f"{key}={quoted(v) if isinstance(v, str) else json.dumps(v)}" for key, v in values.items()]


def warn_of_others(name: str, recipe: Recipe, kept: Recipe, given: Collection[str]) -> None:
    """Warns of settings of a recipe that have no effect because the resumed run has its own; `given` ones do."""
    for section, settings in recipe:
        for key in sorted(settings.model_fields_set):
            here, there = getattr(getattr(kept, section), key, None), getattr(settings, key)
            if here != there and f"{section}.{key}" not in {"data.source", *given}:
                logging.warning(
                    "%s.%s stays %s, as the run began, and is not %s, as in %s: --set changes it",
                    *(section, key, here, there, name),
                )


def check_source(chosen: Recipe, name: str | None, run: Path, resume: bool, dry_run: bool) -> None:
    """Raises UserError if the data is not there and it is plain what to give."""
    from ..config import load_recipe, recipe_names
    from ..settings import FashionSettings
    from ..training.run_folder import resume_command

    data = chosen.data
    if isinstance(data, FashionSettings) or Path(data.source).exists() or (dry_run and data.stand_in):
        return
    if resume and (run / "recipe.json").is_file():
        raise UserError(
            f"{data.source} is not there any more; if it is elsewhere now: {resume_command(run)} --data FOLDER"
        )
    name = name or "images"
    if name in recipe_names() and data.source == load_recipe(name).data.source:
        raise UserError(f"the recipe {name} trains on images of your own: give their folder with --data")


def data_override(data: str | None) -> list[str]:
    """--data as a setting; always a path, so that a folder called fashion is not taken for the built-in set."""
    if data is None:
        return []
    path = data if os.path.isabs(data) else os.path.join(".", data)
    return [f"data.source={quoted(path)}"]


def quoted(path: str) -> str:
    """A string of YAML for a path; what YAML does not take as it is, such as bytes that are not UTF-8, is escaped."""
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in json.dumps(path, ensure_ascii=False))

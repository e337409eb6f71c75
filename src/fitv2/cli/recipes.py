"""`fitv2 recipes`, and which recipe a training takes."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .options import Json
from .output import show_table

if TYPE_CHECKING:
    from ..settings.recipe import Recipe

# The peak of an A100 in bfloat16, and the fraction of it that training reaches.
A100_FLOPS, UTILISATION = 312e12, 0.4
# What a recipe for the user's own images is listed with: classes, and channels of latents.
CLASSES, LATENT_CHANNELS = 10, 4


def recipes(as_json: Json = False) -> None:
    """List the recipes for 'fitv2 train --recipe NAME': what they train, network size and time.

    Times count the matrix products alone, at 40 % of an A100's peak (312 TFLOP/s); small networks take longer there.
    'fitv2 train --recipe NAME --dry-run' measures a step on this machine instead.
    """
    from ..settings.read import recipe_names

    rows = [recipe_row(name) for name in recipe_names()]
    if as_json:
        print(json.dumps(rows))
        return
    table = []
    for row in rows:
        hours = row["device_hours"]
        time = f"{hours:,.0f} h" if hours >= 1 else f"{max(60 * hours, 1):.0f} min"
        table.append([row["recipe"], f"{row['parameters'] / 1e6:,.1f} M", f"{row['steps']:,}", time, row["about"]])
    show_table(("recipe", "parameters", "steps", "A100 time", "trains"), table, words=("recipe", "trains"))
    print(
        "\nTime: of the matrix products at 40 % of an A100's peak; fitv2 train --recipe NAME --dry-run: of this machine"
    )


def recipe_row(name: str) -> dict[str, Any]:
    """Returns the name, size and cost of a shipped recipe, and the first line of its file."""
    from ..model.presets import config_of
    from ..profiling.formula import parameters
    from ..profiling.training_plan import training_flops
    from ..settings.read import load_recipe, recipe_folder
    from ..text import read_channels

    recipe = load_recipe(name)
    model, training = recipe.model, recipe.training
    settings: dict[str, Any] = model.network() | channels_and_classes(recipe)
    if model.encoder is not None:
        settings["context_channels"] = read_channels(model.encoder)
    config = config_of(**settings)
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


def channels_and_classes(recipe: Recipe) -> dict[str, int]:
    """Returns the channels and classes of the data that a shipped recipe is meant for."""
    from ..settings.data import EmojiSettings, FashionSettings

    data = recipe.data
    if isinstance(data, FashionSettings):
        return {"in_channels": 1, "num_classes": 10}
    if isinstance(data, EmojiSettings):
        return {"in_channels": 3, "num_classes": 0 if data.classes == "none" else 7}
    channels = LATENT_CHANNELS if recipe.model.patch_size <= 2 else data.channels
    return {"in_channels": channels, "num_classes": 1000 if data.stand_in else CLASSES}


def choose_recipe(
    name: str | None, data: str | None, base: str | None, run: Path, resume: bool, settings: list[str]
) -> tuple[Recipe, str | None]:
    """Returns the recipe of the run that is resumed, or else the named one and its name, with the settings on top.

    Args:
        name: The recipe of --recipe; None: the one that suits the data.
        data: The folder of --data.
        base: The model of --init-from.
        run: The folder of the run.
        resume: Whether to continue the run there, if there is one.
        settings: section.key=value.
    """
    from ..build import holds_latents, model_settings
    from ..checkpoints.model_folder import load_pretrained
    from ..settings.data import FolderSettings
    from ..settings.read import load_recipe
    from ..training.run_folder import check_name, no_run, resumed_recipe

    # Always a path, so that a folder called fashion is not taken for the built-in images.
    source = [] if data is None else [f"data.source={quoted(os.path.join(os.curdir, data))}"]
    overrides = [*source, *settings]
    kept = resumed_recipe(run, overrides) if resume else None
    if kept is not None:
        if base not in (None, kept.training.init_from):
            raise UserError(f"{run} already holds a run, which --init-from cannot change; choose another --out")
        if name is not None:
            check_name(run, name)
            warn_of_others(name, kept, overrides)
        return kept, None
    if name is None and data is None and base is None:
        raise UserError(f"{no_run(run)} To begin one there, give --recipe or --data")
    start: dict[str, Any] = {}
    if base is not None:  # A network of the same architecture and size.
        network = model_settings(load_pretrained(base, None).model.config)
        start = {"training.init_from": base} | {f"model.{key}": value for key, value in network.items()}
    if name is None:
        name = "latents" if data is not None and holds_latents(FolderSettings(source=data)) else "images"
    of_base = [f"{key}={quoted(v) if isinstance(v, str) else json.dumps(v)}" for key, v in start.items()]
    return load_recipe(name, [*of_base, *overrides]), name


def warn_of_others(name: str, kept: Recipe, overrides: list[str]) -> None:
    """Warns of settings of the named recipe that have no effect, because the resumed run has its own."""
    from ..legacy import KEYS
    from ..settings.read import load_recipe

    given = [override.partition("=")[0].strip() for override in overrides]
    effective = {"data.source", *(KEYS.get(key, key) for key in given)}
    for section, settings in load_recipe(name):
        for key in sorted(settings.model_fields_set):
            here, there = getattr(getattr(kept, section), key, None), getattr(settings, key)
            if here != there and f"{section}.{key}" not in effective:
                logging.warning(
                    "%s.%s stays %s, as the run began, and is not %s, as in %s: --set changes it",
                    *(section, key, here, there, name),
                )


def check_source(chosen: Recipe, run: Path, resume: bool, dry_run: bool) -> None:
    """Raises UserError if the data is not there."""
    from ..settings.data import FolderSettings
    from ..training.run_folder import resume_command

    data = chosen.data
    if not isinstance(data, FolderSettings) or Path(data.source).exists() or (dry_run and data.stand_in):
        return
    advice = "give the folder that holds the images with --data"
    if resume and (run / "recipe.json").is_file():
        advice = f"if it is elsewhere now: {resume_command(run)} --data FOLDER"
    raise UserError(f"there is no folder {data.source}: {advice}")


def quoted(path: str) -> str:
    """A string of YAML for a path; characters that YAML does not take, such as bytes of no UTF-8, are escaped."""
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in json.dumps(path, ensure_ascii=False))

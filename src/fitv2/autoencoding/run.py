"""The folder of an autoencoder's training: whether one may begin or continue in it, and with which settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..autoencoder_settings import AutoencoderRecipe
from ..config import build_autoencoder_recipe
from ..errors import UserError
from ..messages import command
from ..training.run_folder import RECIPE, check_changes, damage_of, dotted, kept_tree, may_begin

# Settings that are fixed when a run begins, beside those of model and data.
SETTLED = ("training.seed", "training.holdout", "training.batch_size")


def chosen_recipe(run: Path, sources: Sequence[str], overrides: Sequence[str], resume: bool) -> AutoencoderRecipe:
    """Returns the recipe of the run that is resumed, or else that of the sources, with the overrides on top.

    Raises UserError if there are neither, or the folder holds a run of another command.
    """
    kept = kept_recipe(run) if resume else None
    tree: dict[str, Any] = {} if kept is None else kept.model_dump(mode="json")
    if sources:
        tree["data"] = tree.get("data", {}) | {"sources": list(sources)}
    if not tree and not any(setting.startswith("data.sources=") for setting in overrides):
        raise UserError("name the images to train on with --data, or continue a run with --resume --out RUN")
    return build_autoencoder_recipe(tree, overrides)


def kept_recipe(run: Path) -> AutoencoderRecipe | None:
    """Returns the recipe of the run in a folder; None if there is no run. Raises UserError as `chosen_recipe`."""
    tree = kept_tree(run)
    if tree is None:
        return None
    if tree.get("kind") != "autoencoder":
        raise UserError(f"{run} is no training of an autoencoder: {command('train', '--resume', '--out', run)}")
    with damage_of(run / RECIPE):
        return build_autoencoder_recipe(tree)


def check_run(run: Path, recipe: AutoencoderRecipe, resume: bool) -> None:
    """Raises UserError if continuing would mix two runs or lose files of others; logs all other changes.

    Where the images are does not matter here: their content is compared.
    """
    if may_begin(run, [Path(source) for source in recipe.data.sources], resume):
        before, now = dotted(kept_recipe(run) or recipe), dotted(recipe)
        changed = [key for key in now if before.get(key) != now[key] and key != "data.sources"]
        check_changes(run, before, now, changed, SETTLED)

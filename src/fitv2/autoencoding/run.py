"""With which settings an autoencoder is trained: those of the run that continues, or new ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..autoencoder_settings import AutoencoderRecipe
from ..config import build_autoencoder_recipe
from ..errors import UserError
from ..settings import Recipe
from ..training.run_folder import kept_of_any_kind, resume_command


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
    kept = kept_of_any_kind(run)
    if isinstance(kept, Recipe):
        raise UserError(f"{run} is no training of an autoencoder: {resume_command(run)} continues it")
    return kept

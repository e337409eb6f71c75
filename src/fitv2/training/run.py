"""The folder of a run: which recipe it belongs to, and whether training may continue in it."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from ..atomic import write_text
from ..config import Recipe, build_recipe
from ..data.dataset import Dataset
from ..errors import UserError

logger = logging.getLogger(__name__)
RECIPE = "recipe.json"


def check_run(run: Path, recipe: Recipe, resume: bool) -> None:
    """Raises ValueError where continuing would mix two runs; logs what else has changed."""
    kept = run / RECIPE
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file; name a folder for the run")
    if not kept.is_file():
        if resume:
            logger.warning("there is no run in %s to continue: starting at step 0", run)
        return
    if not resume:
        raise UserError(f"{run} already holds a run; add --resume to continue it, or choose another --out")
    now = recipe.model_dump(mode="json")
    try:
        before = build_recipe(json.loads(kept.read_text())).model_dump(mode="json")
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{kept} is damaged ({error!r}); remove it to continue with the settings given") from None
    changed = [
        f"{section}.{key}={before[section].get(key)}"
        for section in ("model", "data")
        for key in sorted(before[section].keys() | now[section].keys())
        if before[section].get(key) != now[section].get(key)
    ]
    if changed:
        raise UserError(f"{run} was trained with {', '.join(changed)}, which --resume cannot change; see {kept}")
    for section in ("training", "log"):
        for key in sorted(before[section].keys() | now[section].keys()):
            old, new = before[section].get(key), now[section].get(key)
            if old != new:
                logger.warning("%s.%s was %s until here and is %s from here", section, key, old, new)


def keep_recipe(run: Path, recipe: Recipe) -> None:
    """The resolved settings as recipe.json."""
    write_text(run / RECIPE, recipe.model_dump_json(indent=1))


def data_digest(dataset: Dataset) -> str:
    """16 digits that change with the classes, labels, sizes or order of the pictures (not with their pixels)."""
    view = dataset.epoch(0, 0)
    content = [repr(dataset.class_names).encode(), view.hw.tobytes(), view.labels.tobytes()]
    return hashlib.sha256(b"".join(content)).hexdigest()[:16]

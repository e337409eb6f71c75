"""The folder of a run: which recipe, classes and data it belongs to, and whether training may continue in it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints.model_folder import MOST_EXAMPLES, MOST_SHAPES, Example, read_config
from ..data.contents import refuse_among
from ..data.dataset import Dataset
from ..errors import UserError, damaged
from ..legacy import RECIPES
from ..messages import command, shortened, suggestion_beside
from ..model.config import FiTConfig
from ..model.rope import RopeScheme
from ..settings.autoencoder import AnyRecipe, AutoencoderRecipe
from ..settings.data import BUILT_IN
from ..settings.read import build_autoencoder_recipe, build_recipe
from ..settings.recipe import SECTIONS, Recipe
from ..system.atomic import write_text
from ..system.hashes import json_digest
from ..system.provenance import provenance

logger = logging.getLogger(__name__)
# The settings of a run that are in effect, and the names of those data settings that were given.
RECIPE, GIVEN = "recipe.json", "given.json"
# The name of the recipe that the run began with.
BEGUN = "begun.json"
# Which code trained the run on which machine: an entry for the start and one for each resume.
PROVENANCE = "provenance.json"
# A training writes these once it has begun; without RECIPE they belong to something else.
WRITTEN = ("checkpoints", "exports", "log.jsonl", "model", "samples")
# Settings of the data that may change, because the data itself is compared with that of before.
COMPARED = ("data.source", "data.sources", "data.labels")
# Settings that decide which weights are trained, and on which images, are fixed when a run begins.
SETTLED = tuple(
    f"training.{name}"
    for name in ("init_from", "reinit", "trainable", "holdout", "objective", "optimizer", "shift_tokens")
)
# Without these in its state.json, no checkpoint of `fitv2 train` can be continued.
NEEDED = {"classes", "content", "trained"}
# Class names that a message shows.
TOLD = 20


def resume_command(run: Path, kind: str = "train") -> str:
    """Returns the command that continues a run; kind: the command that began it."""
    return command(kind, "--resume", "--out", run)


def no_run(run: Path) -> str:
    """Returns the sentence that there is no run in a folder, and which one beside it may be meant."""
    return f"there is no run in {run} to continue{suggestion_beside(run, RECIPE) or '.'}"


def kept_recipe(run: Path, kind: type[AnyRecipe]) -> AnyRecipe | None:
    """Returns the recipe of the run in a folder; None if there is no run.

    Raises UserError if it is damaged, or the run is of the other kind.
    """
    kept = kept_of_any_kind(run)
    if kept is None or isinstance(kept, kind):
        return kept
    other = "train" if isinstance(kept, Recipe) else "autoencoder"
    raise UserError(f"{run} is a run of fitv2 {other}: {resume_command(run, other)} continues it")


def kept_of_any_kind(run: Path) -> Recipe | AutoencoderRecipe | None:
    """Returns the recipe of the run in a folder; None if there is no run. Raises UserError if it is damaged."""
    path = run / RECIPE
    if not path.is_file():
        return None
    try:
        tree = json.loads(path.read_bytes())
        return (build_autoencoder_recipe if tree.get("kind") == "autoencoder" else build_recipe)(tree)
    except (ValueError, TypeError, AttributeError) as error:
        raise damaged(path, error, "remove it to continue with the settings given") from None


def resumed_recipe(run: Path, overrides: Sequence[str]) -> Recipe | None:
    """Returns the recipe of the run in a folder with overrides (section.key=value); None if there is no run."""
    kept = kept_recipe(run, Recipe)
    if kept is None:
        return None
    tree = kept.model_dump(mode="json")
    try:
        given = list(json.loads((run / GIVEN).read_bytes()))
    except (OSError, ValueError, TypeError):  # Older versions kept no such list: a value that is no default was given.
        plain = build_recipe({"data": {"source": kept.data.source}}).data
        given = [key for key, value in kept.data if value != getattr(plain, key)]
    # Settings that were not given come from the data, above all from prepared data.
    tree["data"] = {key: value for key, value in tree["data"].items() if key in {*given, "source"}}
    return build_recipe(tree, overrides)


def check_run(run: Path, recipe: Recipe | AutoencoderRecipe, resume: bool) -> None:
    """Raises UserError if continuing would mix two runs or lose files of others.

    Where the data is and how its labels are chosen do not matter here: `check_data` compares the content.
    """
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file; name a folder for the run")
    sources = recipe.data.sources if isinstance(recipe, AutoencoderRecipe) else [recipe.data.source]
    refuse_among(run, *(Path(source) for source in sources if source not in BUILT_IN))
    if not (run / RECIPE).is_file():
        there = [name for name in WRITTEN if (run / name).exists()]
        if there and not (resume and "checkpoints" in there):  # The user has removed a damaged recipe.
            raise UserError(f"{run} is no run, and its {there[0]} would be overwritten: choose another --out")
        if resume:
            logger.warning("%s A new one begins in %s at step 0", no_run(run), run)
        return
    if not resume:
        raise UserError(f"{run} already holds a run; add --resume to continue it, or choose another --out")
    changed = changes(run, recipe)
    if lasting := [key for key in changed if key.startswith(("model.", "data.")) or key in SETTLED]:
        told = ", ".join(f"{key}={changed[key][0]}" for key in lasting)
        raise UserError(f"{run} was trained with {told}, which --resume cannot change; see {run / RECIPE}")


def changes(run: Path, recipe: Recipe | AutoencoderRecipe) -> dict[str, tuple[Any, Any]]:
    """Returns the settings that differ from those of the run in a folder, dotted: (there, here)."""
    before, now = dotted(kept_of_any_kind(run) or recipe), dotted(recipe)
    pairs = {key: (before.get(key), now.get(key)) for key in before | now if key not in COMPARED}
    return {key: (there, here) for key, (there, here) in pairs.items() if there != here}


def check_name(run: Path, name: str) -> None:
    """Raises UserError if the run in a folder began with another recipe; older versions did not keep its name."""
    try:
        kept = json.loads((run / BEGUN).read_bytes())["recipe"]
    except (OSError, ValueError, TypeError, KeyError):
        return
    if kept != plain_name(name):
        raise UserError(
            f"{run} began with the recipe {kept}, and --recipe {name} is another: continue the run without --recipe, "
            "or choose another --out"
        )


def keep_name(run: Path, name: str) -> None:
    """Writes the name of the recipe that the run in a folder begins with."""
    write_text(run / BEGUN, json.dumps({"recipe": plain_name(name)}))


def plain_name(name: str) -> str:
    """Returns the name of a recipe that ships, or of a file wherever it is."""
    return Path(RECIPES.get(name, name)).name


def dotted(recipe: Recipe | AutoencoderRecipe) -> dict[str, Any]:
    """Returns the settings by names such as training.steps."""
    sections = recipe.model_dump(mode="json", include=set(SECTIONS)).items()
    return {f"{section}.{key}": value for section, content in sections for key, value in content.items()}


def keep_recipe(run: Path, recipe: Recipe | AutoencoderRecipe) -> None:
    """Writes the resolved settings as recipe.json, and logs how they differ from those of before."""
    for key, (there, here) in changes(run, recipe).items():
        logger.warning("%s was %s up to here and is %s from now on", key, there, here)
    # Not pydantic's own JSON, which cannot hold the names of folders that are not UTF-8.
    write_text(run / GIVEN, json.dumps(sorted(recipe.data.model_fields_set)))
    write_text(run / RECIPE, json.dumps(recipe.model_dump(mode="json"), indent=1))


def keep_provenance(run: Path, done: int, content: str) -> None:
    """Adds to provenance.json the code and the machine that train from step `done`, and the digest of the data."""
    entry = {"from_step": done, "data": content, **provenance()}
    write_text(run / PROVENANCE, json.dumps([*kept_provenance(run), entry], indent=1))


def kept_provenance(run: Path) -> list[dict[str, Any]]:
    """Returns the entries of provenance.json in their order; none for runs of older versions."""
    try:
        return list(json.loads((run / PROVENANCE).read_bytes()))
    except (OSError, ValueError, TypeError):
        return []


def exported(run: Path, step: int) -> Path:
    """Returns the model folder that `log.export_at` writes at a step."""
    return run / "exports" / f"step-{step:08d}"


def identity(dataset: Dataset, examples: Sequence[Example] = ()) -> dict[str, Any]:
    """Returns what a checkpoint records of the data: the class names in order, and digests of content and captions.

    examples: Of `facts`; none for a model that reads no captions.
    """
    captions = {"captions": json_digest(examples)[:16]} if examples else {}
    return {"classes": list(dataset.class_names), "content": dataset.digest()} | captions


def facts(dataset: Dataset, text_encoder: str | None) -> dict[str, Any]:
    """Returns what a model folder says of the data, as arguments of `save_pretrained`."""
    return {
        "class_names": list(dataset.class_names),
        "shapes": dataset.shapes(MOST_SHAPES),
        "autoencoder": dataset.autoencoder,
        "text_encoder": text_encoder,
        "examples": dataset.examples(MOST_EXAMPLES) if text_encoder else [],
    }


def check_data(run: Path, recipe: Recipe, found: dict[str, Any], state: dict[str, Any]) -> None:
    """Compares the `identity` of the data with that in a checkpoint's state.json.

    Raises UserError if classes were renamed, added, removed or reordered, or other data at another place was given; or
    if there is nothing to compare with.
    """
    if missing := NEEDED - state.keys():
        raise UserError(
            f"the state.json of {run}'s newest checkpoint lacks {', '.join(sorted(missing))}: it is damaged, or from a "
            "version of fitv2 that is too old; continue with the version that began the run, or begin another run"
        )
    if state["classes"] != found["classes"]:
        known, there = (shortened(names, TOLD) or "no classes" for names in (state["classes"], found["classes"]))
        raise UserError(
            f"{run} was trained on other classes, and its label table would mean something else. It knows "
            f"{known}; {recipe.data.source} has {there}. Restore the classes, or begin "
            "another run, from this one's weights if you like (--set training.init_from=RUN)"
        )
    if state.get("captions", found.get("captions")) != found.get("captions"):
        logger.warning("the captions have changed since the last checkpoint: the run continues with those of now")
    if state["content"] == found["content"]:
        return
    kept = kept_recipe(run, Recipe)
    if kept is not None and not same_place(kept.data.source, recipe.data.source):
        raise UserError(
            f"the images in {recipe.data.source} are not those of {kept.data.source}, on which {run} was trained; "
            "give the folder that holds the same images (--data), or begin another run"
        )
    logger.warning("the images have changed since the last checkpoint: the run continues, but in another order")


def check_held_out(state: Mapping[str, Any], found: str) -> None:
    """Warns if other images were held out before; older versions kept no digest."""
    if state.get("held_out", found) != found:
        logger.warning(
            "other images are held out than before the last checkpoint: the loss of these may be that of images which "
            "were trained on, and in this epoch images may come twice or not at all"
        )


def held_out_digest(chosen: np.ndarray) -> str:
    """Returns 16 hexadecimal digits of the indices of the held-out images; empty if there are none."""
    return json_digest(chosen.tolist())[:16] if len(chosen) else ""


def check_teacher(run: Path, recipe: Recipe, state: Mapping[str, Any], found: str | None) -> None:
    """Raises UserError if the model that teaches has another digest than in state.json; older versions kept none."""
    if state.get("teacher", found) != found:
        raise UserError(
            f"{recipe.training.init_from}, which teaches {run}, is not the model that it was at the start, or its "
            "sampling.json has changed: restore it, or begin another run"
        )


def kept_rope(run: Path, state: Mapping[str, Any]) -> RopeScheme | None:
    """Returns the positions of the run's network, which the recipe does not fix: they may be of a model that is gone.

    From state.json or, for runs of older versions, from the exported model; None for a network without rotary
    positions. Raises UserError if that model cannot be read.
    """
    if "rope" in state:
        return None if state["rope"] is None else RopeScheme(**state["rope"])
    path = run / "model/config.json"
    try:
        config = read_config(path)[1]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, error, "this run of an older version needs it to continue: restore it") from None
    return config.rope if isinstance(config, FiTConfig) else None


def same_place(a: str, b: str) -> bool:
    """Whether two sources are the same, also if one path is relative and the other absolute."""
    return a == b or (not {a, b} & {*BUILT_IN} and Path(a).absolute() == Path(b).absolute())

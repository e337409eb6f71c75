"""Names of older versions in recipes, on the command line and in model folders, with today's names.

Recipes, run folders, model folders and saved pipelines of older versions are read through this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Settings of a recipe, dotted.
KEYS = {
    "training.start_from": "training.init_from",
    "training.begin_anew": "training.reinit",
    "training.train_only": "training.trainable",
    "training.tokens_per_pack": "training.max_tokens_per_batch",
    "training.packs_per_step": "training.batches_per_step",
    "training.decay_share": "training.decay_fraction",
    "training.clip": "training.max_grad_norm",
    "training.label_drop": "training.class_dropout_prob",
    "log.tensorboard": "log.trackers",
}
# What a network predicts, also in the config.json of a model.
PREDICTIONS = {"noise": "epsilon"}
# YAML reads a bare `no` as false.
PRECISIONS = {"no": "fp32", False: "fp32", "float32": "fp32"}
# `log.tensorboard` was true or false.
TRACKERS = {True: ["tensorboard"], False: []}
VALUES: dict[str, Mapping[Any, Any]] = {
    "model.prediction": PREDICTIONS,
    "training.precision": PRECISIONS,
    "log.trackers": TRACKERS,
}
# Shipped recipes.
RECIPES = {"pictures": "images"}
# The counts of a dataset.json.
COUNTS = {"pictures": "images"}
# The request in a samples.json.
REQUEST = {"full_every": "cache_interval"}
# Costs of a training in a study's table of results.
COSTS = COUNTS | {"pictures_per_step": "images_per_step", "tokens_per_picture": "tokens_per_image"}
# Settings of the network that older versions wrote for every architecture, where null meant the architecture's own.
DEFAULTED = ("lora_rank", "qk_norm", "modulation", "prediction", "extrapolation")
# Settings that older versions wrote for DiT and SiT as well, with these values and without effect.
UNUSED_BY_GRIDS = {"mlp_ratio": 4.0, "qk_norm_affine": False}


def current_setting(key: str, value: Any) -> tuple[str, Any]:
    """Returns today's name of a dotted setting, and of its value."""
    key = KEYS.get(key, key)
    values = VALUES.get(key, {})
    return key, values.get(value, value) if isinstance(value, str | bool) else value


def current_recipe(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a recipe, as sections with keys, with today's names; an empty section stands for all defaults."""
    found: dict[str, Any] = {}
    for section, content in tree.items():
        if not isinstance(content, dict):
            found[section] = {} if content is None else content
            continue
        pairs = (current_setting(f"{section}.{key}", value) for key, value in content.items())
        found[section] = {key.partition(".")[2]: value for key, value in pairs}
    return found


def without_defaults(model: dict[str, Any]) -> dict[str, Any]:
    """Removes settings from a recipe's model section that older versions wrote and that have no effect."""
    unused = UNUSED_BY_GRIDS if model.get("architecture") in ("DiT", "SiT") else {}
    return {
        key: value
        for key, value in model.items()
        if not (value is None and key in DEFAULTED) and not (key in unused and value == unused[key])
    }


def current_request(request: Any) -> Any:
    """Returns the request of a samples.json with today's names."""
    return {REQUEST.get(key, key): value for key, value in request.items()} if isinstance(request, dict) else request

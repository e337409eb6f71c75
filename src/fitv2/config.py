"""Recipes: what a run consists of, read from YAML, changed from the command line, checked before anything starts."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from .errors import UserError
from .messages import suggestion
from .yaml_text import parse_yaml, read_yaml


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSettings(Settings):
    """The network; input channels and number of classes come from the data."""

    architecture: Literal["FiTv2", "FiT", "DiT", "SiT"] = Field(
        "FiTv2", description="FiT: the predecessor, trained with diffusion; DiT, SiT: of one square size alone"
    )
    width: PositiveInt = Field(256, description="numbers per token inside the model")
    depth: PositiveInt = Field(6, description="number of blocks")
    heads: PositiveInt = Field(4, description="attention heads")
    patch_size: PositiveInt = Field(4, description="side of a patch, in latent pixels")
    mlp_ratio: PositiveFloat = Field(4.0, description="SwiGLU is 2/3 of this times the width")
    lora_rank: PositiveInt | None = Field(None, description="rank of each block's modulation; default width / 4")
    qk_norm: bool | None = Field(
        None, description="LayerNorm of queries and keys; default: as the architecture has it (FiTv2 yes, FiT no)"
    )
    qk_norm_affine: bool = Field(False, description="learned scale in the norm of queries and keys")
    modulation: Literal["low-rank", "full"] | None = Field(
        None, description="AdaLN: shared with a low-rank part per block (FiTv2), or a full one per block (FiT)"
    )
    prediction: Literal["velocity", "noise"] | None = Field(
        None, description="velocity, trained as a rectified flow (FiTv2), or noise and its variance, by diffusion (FiT)"
    )
    extrapolation: str | None = Field(
        None, description="with training.start_from: positions beyond that model's size, such as vision-ntk"
    )

    @property
    def parts(self) -> dict[str, Any]:
        """qk_norm, modulation and prediction as they are in effect, as far as the architecture has a choice."""
        given = {part: getattr(self, part) for part in PARTS[self.architecture]}
        return PARTS[self.architecture] | {part: value for part, value in given.items() if value is not None}


class DataSettings(Settings):
    """What is trained on."""

    source: str = Field("fashion", description="'fashion' (built in), a folder of pictures, or one of prepared latents")
    split: Literal["bundled", "full"] = Field("bundled", description="fashion: the packaged 10 000, or all 60 000")
    folder: Path | None = Field(
        None, description="fashion: where the upstream files are, if not where Debian puts them"
    )
    max_tokens: PositiveInt = Field(
        default_factory=lambda data: 49 if data["source"] == "fashion" else 256,
        description="larger pictures are scaled down to this many tokens; fashion: 49, of whole garments, by default",
    )
    channels: Literal[1, 3] = Field(3, description="folder: 3 for colour, 1 for grey")
    labels: Literal["auto", "folders", "none"] = Field(
        "auto",
        description="folder: the classes are its sub-folders (folders), those of metadata.jsonl, metadata.csv or "
        "dataset.json in it, or else its sub-folders (auto); or there are none (none)",
    )
    preprocessing: Literal["mixed", "resize", "crop"] = Field(
        default_factory=lambda data: "resize" if data["source"] == "fashion" else "mixed",
        description="Algorithm 1 of FiTv2 (mixed) or one of its versions alone; fashion: resize by default",
    )
    flip: bool = Field(True, description="folder: mirror half of the pictures")
    stand_in: Literal["imagenet"] | None = Field(
        None, description="sizes that --dry-run plans with while the source is not here"
    )
    min_scale: float = Field(1.0, gt=0, le=1, description="draw pictures at random linear scales from this up to 1")

    def of_other_sources(self) -> set[str]:
        """The keys that mean nothing for this source."""
        builtin, folder = {"split", "folder"}, {"channels", "flip", "labels", "stand_in"}
        return folder if self.source == "fashion" else builtin

    @model_validator(mode="after")
    def no_setting_is_ignored(self) -> Self:
        useless = sorted(self.of_other_sources() & self.model_fields_set)
        if useless:
            raise UserError(f"{', '.join(useless)} would have no effect on the source {self.source!r}; remove it")
        return self

    @model_serializer(mode="wrap")
    def what_counts(self, handler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key not in self.of_other_sources()}


class TrainingSettings(Settings):
    """How it is trained."""

    start_from: str | None = Field(
        None, description="a model (folder or builtin:NAME) whose weights training begins with, where they fit"
    )
    begin_anew: tuple[Literal["labels", "patches", "trained"], ...] = Field(
        (), description="start_from: begin these without its weights: label table, patch layers, all that is trained"
    )
    train_only: Literal["all", "high-resolution"] = Field(
        "all", description="high-resolution: patch layers, biases, norms and AdaLN, a seventh of the weights"
    )
    steps: PositiveInt = Field(10_000, description="optimiser steps")
    tokens_per_pack: PositiveInt = Field(4096, description="token budget of one forward pass")
    packs_per_step: PositiveInt = Field(1, description="packs a step over all processes; more accumulate gradients")
    learning_rate: PositiveFloat = Field(1e-3, description="peak learning rate of AdamW")
    warmup_steps: int = Field(200, ge=0, description="linear rise of the learning rate")
    decay_share: float = Field(0.0, ge=0, le=1, description="last share of the steps, with a linear fall to zero")
    weight_decay: float = Field(0.0, ge=0)
    beta2: float = Field(0.999, gt=0, lt=1, description="AdamW's second-moment decay")
    clip: PositiveFloat = Field(1.0, description="largest norm of the gradient")
    ema_decay: float = Field(0.9999, gt=0, lt=1, description="decay of the averaged weights, warmed up")
    label_drop: float = Field(0.1, ge=0, le=1, description="share of pictures trained without their label")
    time_density: Literal["logit_normal", "uniform", "cosmap", "mode"] = Field(
        "logit_normal", description="of training times on the path; cosmap and mode are those of Stable Diffusion 3"
    )
    time_mean: float = Field(0.0, description="logit-normal: mean of the logit of t")
    time_std: PositiveFloat = Field(1.0, description="logit-normal: standard deviation of the logit of t")
    time_scale: float = Field(
        1.29, ge=-1, le=1.75, description="mode: above 0 more in the middle of the path, below at its ends"
    )
    precision: Literal["bf16", "no"] = Field("bf16", description="bf16 (autocast) or fp32, stored as 'no'")
    compile: bool = Field(False, description="fuse element-wise work with torch.compile (needs a C++ compiler)")
    activation_checkpointing: bool = Field(False, description="less memory for a third more time")
    sharding: Literal["none", "fsdp"] = Field(
        "none", description="several processes: 'none', each holds all weights (DDP); 'fsdp', each its share (FSDP2)"
    )
    workers: PositiveInt = Field(2, description="threads that load pictures")
    seed: int = Field(0, ge=0, lt=2**32, description="fixes weights, data order, times and noise")

    @model_validator(mode="after")
    def the_peak_is_reached(self) -> Self:
        if self.warmup_steps > self.steps * (1 - self.decay_share):
            raise UserError(
                f"warmup_steps={self.warmup_steps} and decay_share={self.decay_share:g} overlap within "
                f"{self.steps} steps; lower one of them"
            )
        return self

    @model_validator(mode="after")
    def only_a_start_has_parts(self) -> Self:
        if self.start_from is None and (self.begin_anew or self.train_only != "all"):
            raise UserError("begin_anew and train_only go with start_from, the model to begin with")
        return self

    @field_validator("precision", mode="before")
    @classmethod
    def no_is_a_word(cls, value: Any) -> Any:
        """fp32 is stored under its old name, so that older recipes stay equal; YAML reads a bare `no` as false."""
        return "no" if value is False or value in ("fp32", "float32") else value


class LogSettings(Settings):
    """What is written while it trains."""

    checkpoint_every: PositiveInt = Field(500, description="steps between checkpoints")
    keep_checkpoints: PositiveInt = Field(2, description="older ones are removed")
    sample_every: PositiveInt | None = Field(1000, description="steps between sample sheets; null: none")
    sample_steps: PositiveInt = Field(20, description="steps of the sample sheets, of ab2 (noise: ddim)")
    sample_guidance: float = Field(2.0, ge=0, description="guidance scale of the sample sheets")
    export_at: tuple[PositiveInt, ...] = Field(
        (), description="steps at which the averaged weights are also kept as a model, in exports/"
    )
    tensorboard: bool = Field(False, description="also write TensorBoard events (needs the tensorboard package)")


# The parts in which architectures differ, as each has them where a recipe says nothing.
PARTS: dict[str, dict[str, Any]] = {
    "FiTv2": {"qk_norm": True, "modulation": "low-rank", "prediction": "velocity"},
    "FiT": {"qk_norm": False, "modulation": "full", "prediction": "noise"},
    "DiT": {"prediction": "noise"},
    "SiT": {"prediction": "velocity"},
}
# Of the full diffusion process, which a sampler can only shorten.
MOST_NOISE_STEPS = 1000
# What only FiTv2 and FiT have: parts of the network, and ways to train it.
NOT_OF_GRIDS = ("mlp_ratio", "lora_rank", "qk_norm", "qk_norm_affine", "modulation", "extrapolation")
NOT_FOR_GRIDS = ("start_from", "begin_anew", "train_only", "compile", "sharding")


class Recipe(Settings):
    """A whole run."""

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    training: TrainingSettings = TrainingSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def extrapolation_has_a_base(self) -> Self:
        if self.model.extrapolation is not None and self.training.start_from is None:
            raise UserError("model.extrapolation goes with training.start_from: it extends the size of that model")
        return self

    def without_effect(self) -> Iterator[tuple[str, list[str]]]:
        """What makes settings useless here, and those settings, dotted."""
        parts, density = self.model.parts, self.training.time_density
        if self.model.architecture in ("DiT", "SiT"):
            useless = [f"model.{key}" for key in NOT_OF_GRIDS] + [f"training.{key}" for key in NOT_FOR_GRIDS]
            yield "a fixed grid", useless
        if parts.get("modulation") == "full":
            yield "modulation=full", ["model.lora_rank"]
        if parts.get("qk_norm") is False:
            yield "qk_norm=false", ["model.qk_norm_affine"]
        if parts["prediction"] == "noise":
            yield "prediction=noise", [f"training.time_{name}" for name in ("density", "mean", "std", "scale")]
            return
        if density != "logit_normal":
            yield f"time_density={density}", ["training.time_mean", "training.time_std"]
        if density != "mode":
            yield f"time_density={density}", ["training.time_scale"]

    def is_changed(self, key: str) -> bool:
        """Whether a dotted key has another value than by default."""
        section, _, name = key.partition(".")
        settings = getattr(self, section)
        return getattr(settings, name) != type(settings).model_fields[name].default

    @model_validator(mode="after")
    def sheets_can_be_made(self) -> Self:
        """A training must not end at its first sample sheet."""
        log = self.log
        noise = self.model.parts["prediction"] == "noise"
        if noise and log.sample_every is not None and log.sample_steps > MOST_NOISE_STEPS:
            raise UserError(
                f"log.sample_steps={log.sample_steps} is more than the {MOST_NOISE_STEPS} steps of a network that "
                "predicts noise: lower it"
            )
        return self

    @model_validator(mode="after")
    def every_change_has_an_effect(self) -> Self:
        useless = [
            f"{', '.join(changed)} would have no effect with {reason}"
            for reason, keys in self.without_effect()
            if (changed := [key for key in keys if self.is_changed(key)])
        ]
        if useless:
            raise UserError(f"for the architecture {self.model.architecture} {'; '.join(useless)}; remove it")
        return self


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    return sorted(
        entry.name.removesuffix(".yaml") for entry in recipe_folder().iterdir() if entry.name.endswith(".yaml")
    )


def recipe_folder():
    return files("fitv2").joinpath("recipes")


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A shipped recipe by name or a YAML file by path, with `section.key=value` overrides.

    Raises ValueError for an unknown recipe, key or value; an unknown key is told with the nearest valid one.
    """
    if name in recipe_names():
        tree = parse_yaml(recipe_folder().joinpath(f"{name}.yaml").read_bytes(), name)
    elif Path(name).is_file():
        tree = read_yaml(Path(name))
    else:
        near = suggestion(name, recipe_names())
        raise UserError(f"there is no recipe {name!r}; give a YAML file, or one of {', '.join(recipe_names())}{near}")
    return build_recipe(tree, overrides)


def build_recipe(tree: dict[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from a nested dictionary and overrides; errors as in `load_recipe`. An empty section is all defaults."""
    tree = {section: {} if content is None else deepcopy(content) for section, content in tree.items()}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise UserError(f"{override!r} is not of the form section.key=value")
        branch = tree
        *sections, leaf = key.strip().split(".")
        for section in sections:
            branch = branch.setdefault(section, {})
            if not isinstance(branch, dict):
                raise UserError(f"{override!r} cannot be set: {section!r} holds {branch!r}, not keys with values")
        branch[leaf] = parse_value(value, override)
    for key in dotted_keys(tree):
        check_key(key)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        # A default that depends on a wrong value is no mistake of its own.
        mistakes = [e for e in error.errors() if e["type"] != "default_factory_not_called"]
        problems = [f"{'.'.join(map(str, e['loc']))}: {complaint(e)}" for e in mistakes]
        raise UserError("the recipe does not hold: " + "; ".join(problems)) from None


def parse_value(text: str, override: str) -> Any:
    """The value of an override, as YAML has it. Bytes that are not UTF-8, as in names of folders, are text as it is."""
    if any("\udc80" <= character <= "\udcff" for character in text):
        return text
    return parse_yaml(f"value: {text}", override)["value"]


def complaint(error: dict[str, Any]) -> str:
    """Our own sentences as they are; pydantic's with the value that they speak of."""
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return f"{error['msg']} (given: {error['input']!r})"


def valid_keys() -> list[str]:
    """Every settable key, dotted."""
    return [f"{name}.{key}" for name, field in Recipe.model_fields.items() for key in field.annotation.model_fields]


def check_key(key: str) -> None:
    if key in valid_keys():
        return
    candidates = {valid: valid for valid in valid_keys()} | {valid.split(".")[1]: valid for valid in valid_keys()}
    near = difflib.get_close_matches(key, candidates, 1, 0.4) or difflib.get_close_matches(
        key.split(".")[-1], candidates, 1, 0.0
    )
    raise UserError(f"there is no setting {key!r}; the nearest is {candidates[near[0]]!r}")


def dotted_keys(tree: dict[str, Any]) -> Iterator[str]:
    for section, content in tree.items():
        if isinstance(content, dict) and (content or section in Recipe.model_fields):
            yield from (f"{section}.{key}" for key in content)
        else:
            yield str(section)

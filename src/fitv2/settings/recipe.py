"""The settings of a run: which there are, what they mean, which go together. `fitv2.settings.read` reads them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag, model_validator

from ..errors import UserError
from ..messages import counted
from .data import EmojiSettings, FashionSettings, FolderSettings, Settings, kind_of_source

# The steps of the full diffusion process, which a sampler can only shorten.
DIFFUSION_STEPS = 1000


class NetworkSettings(Settings):
    """Settings of any network; input channels and the number of classes come from the data."""

    width: PositiveInt = Field(default=256, description="numbers per token inside the model")
    depth: PositiveInt = Field(default=6, description="number of blocks")
    heads: PositiveInt = Field(default=4, description="attention heads")
    patch_size: PositiveInt = Field(default=4, description="side of a patch, in latent pixels")

    @property
    def encoder(self) -> str | None:
        """The text encoder; None for a network that is not conditioned on captions."""
        return None

    def network(self) -> dict[str, Any]:
        """Returns what becomes part of the network's own configuration under the same name."""
        return self.model_dump(exclude={"extrapolation", "text_encoder"})


class AnyResolutionSettings(NetworkSettings):
    """Settings of the networks for images of any size."""

    mlp_ratio: PositiveFloat = Field(default=4.0, description="SwiGLU is 2/3 of this times the width")
    lora_rank: PositiveInt | None = Field(default=None, description="rank of a block's modulation; default width / 4")
    qk_norm_affine: bool = Field(default=False, description="learned scale in the norm of queries and keys")
    extrapolation: str | None = Field(
        default=None, description="with init_from: positions beyond that model's size, such as vision-ntk"
    )


QKNorm = Annotated[bool, Field(description="LayerNorm of queries and keys (FiTv2 yes, FiT no)")]
Modulation = Annotated[
    Literal["low-rank", "full"],
    Field(description="AdaLN: shared with a low-rank part per block (FiTv2), or a full one per block (FiT)"),
]
Prediction = Annotated[
    Literal["velocity", "data", "epsilon"],
    Field(
        description="velocity, trained as a rectified flow (FiTv2, SiT); data, the same through the clean image, for "
        "pixels in large patches; or epsilon, by diffusion (FiT, DiT)"
    ),
]


class FiTv2Settings(AnyResolutionSettings):
    """Settings of FiTv2."""

    architecture: Literal["FiTv2"] = Field(
        description="FiTv2; FiT: the predecessor, trained with diffusion; DiT, SiT: for one square size only"
    )
    qk_norm: QKNorm = True
    modulation: Modulation = "low-rank"
    prediction: Prediction = "velocity"
    internal_head: PositiveInt | None = Field(
        default=None,
        description="blocks before a second head, for internal guidance; a quarter to a third of all",
    )
    position_range: int | None = Field(
        default=None, ge=2, description="train at random rows and columns below this, for sizes beyond training"
    )
    context: Literal["none", "joint", "cross"] = Field(
        default="none",
        description="condition on captions: joint, their tokens go before those of the image (the paper); or cross, "
        "attention to them in each block",
    )
    text_encoder: str = Field(
        default="builtin:minilm",
        description="with context: the one that ships, or the folder or hub id of one of transformers (CLIP, T5, BERT)",
    )

    @property
    def encoder(self) -> str | None:
        """The text encoder; None for a network that is not conditioned on captions."""
        return None if self.context == "none" else self.text_encoder

    @model_validator(mode="after")
    def an_encoder_has_a_use(self) -> Self:
        if self.context == "none" and self.text_encoder != type(self).model_fields["text_encoder"].default:
            raise UserError("model.text_encoder: no effect without model.context=joint or cross; add one, or remove it")
        return self


class FiTSettings(AnyResolutionSettings):
    """Settings of FiT, the predecessor."""

    architecture: Literal["FiT"]
    qk_norm: QKNorm = False
    modulation: Modulation = "full"
    prediction: Prediction = "epsilon"


class DiTSettings(NetworkSettings):
    """Settings of DiT, for one square size."""

    architecture: Literal["DiT"]
    prediction: Prediction = "epsilon"


class SiTSettings(NetworkSettings):
    """Settings of SiT, for one square size."""

    architecture: Literal["SiT"]
    prediction: Prediction = "velocity"


ModelSettings = FiTv2Settings | FiTSettings | DiTSettings | SiTSettings
ARCHITECTURES: dict[str, type[NetworkSettings]] = {
    "FiTv2": FiTv2Settings,
    "FiT": FiTSettings,
    "DiT": DiTSettings,
    "SiT": SiTSettings,
}
GRIDS = (DiTSettings, SiTSettings)


# Of a fraction of the steps, in steps.
ROUNDING = 1e-6
# A usual warm-up takes one step in this number of steps.
WARM_UP = 10


class ScheduleSettings(Settings):
    """How long any training takes, and how fast it learns meanwhile."""

    steps: PositiveInt = Field(default=10_000, description="optimiser steps")
    learning_rate: PositiveFloat = Field(default=1e-3, description="peak learning rate")
    warmup_steps: int = Field(default=200, ge=0, description="linear rise of the learning rate")
    decay_fraction: float = Field(
        default=0.0, ge=0, le=1, description="last fraction of the steps, with linear decay to zero"
    )

    @model_validator(mode="after")
    def the_peak_is_reached(self) -> Self:
        if self.warmup_steps + self.steps * self.decay_fraction > self.steps + ROUNDING:
            most = int(self.steps * (1 - self.decay_fraction) + ROUNDING)
            decay = f" and decay_fraction={self.decay_fraction:g} overlap within" if self.decay_fraction else " exceeds"
            raise UserError(
                f"warmup_steps={self.warmup_steps}{decay} {counted(self.steps, 'step')}; warm up for at most {most}, "
                f"such as --set training.warmup_steps={min(most, self.steps // WARM_UP)}"
            )
        return self

    def changed(self, *keys: str) -> list[str]:
        """The keys that have other values than by default."""
        return [key for key in keys if getattr(self, key) != type(self).model_fields[key].default]


# The numbers of each density of times, and all settings of times.
NUMBERS = {"logit_normal": ("time_mean", "time_std"), "mode": ("time_scale",)}
TIMES = ("time_density", "time_mean", "time_std", "time_scale", "shift_tokens")


def numbers_of_others(density: str) -> list[str]:
    """Returns the settings of times that have no effect with a density."""
    return [key for kind, keys in NUMBERS.items() if kind != density for key in keys]


class TrainingSettings(ScheduleSettings):
    """How it is trained."""

    init_from: str | None = Field(
        default=None, description="a model (folder or builtin:NAME) whose weights training begins with, where they fit"
    )
    reinit: tuple[Literal["labels", "patches", "trained"], ...] = Field(
        default=(),
        description="with init_from: parts to reinitialise: label embedding, patch layers, all trainable weights",
    )
    trainable: Literal["all", "high-resolution"] = Field(
        default="all", description="high-resolution: patch layers, biases, norms and AdaLN, a seventh of the weights"
    )
    objective: Literal["flow", "transition"] = Field(
        default="flow",
        description="transition: post-training of the model of init_from for sampling in 1 to 8 steps, its recommended "
        "guidance included",
    )
    max_tokens_per_batch: PositiveInt = Field(default=4096, description="most tokens of one forward pass")
    batches_per_step: PositiveInt = Field(
        default=1, description="forward passes of a step, over all processes; more than one each accumulate gradients"
    )
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw", description="muon: for the matrices of the blocks; AdamW for everything else"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="of matrices; biases, norms and embeddings have none")
    beta2: float = Field(default=0.999, gt=0, lt=1, description="AdamW's second-moment decay")
    max_grad_norm: PositiveFloat = Field(default=1.0, description="largest norm of the gradient")
    ema_decay: float = Field(default=0.9999, gt=0, lt=1, description="decay of the averaged weights, warmed up")
    class_dropout_prob: float = Field(
        default=0.1, ge=0, le=1, description="fraction of images that lose their label and caption"
    )
    time_density: Literal["logit_normal", "uniform", "cosmap", "mode"] = Field(
        default="logit_normal",
        description="of training times on the path; cosmap and mode are of Stable Diffusion 3",
    )
    time_mean: float = Field(default=0.0, description="logit-normal: mean of the logit of t")
    time_std: PositiveFloat = Field(default=1.0, description="logit-normal: standard deviation of the logit of t")
    time_scale: float = Field(
        default=1.29, ge=-1, le=1.75, description="mode: above 0 more in the middle of the path, below at its ends"
    )
    shift_tokens: PositiveInt | None = Field(
        default=None, description="images of more tokens than this train at noisier times, by the root of the ratio"
    )
    internal_weight: PositiveFloat = Field(default=0.5, description="weight of the internal head's loss")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        default="auto",
        description="bf16 (autocast; texts and Muon, too), fp32, or auto: bf16 if the device has it when a run begins",
    )
    compile: bool = Field(default=False, description="compile the blocks with torch.compile (needs a C++ compiler)")
    activation_checkpointing: bool = Field(default=False, description="less memory for a third more time")
    sharding: Literal["none", "fsdp"] = Field(
        default="none",
        description="with several processes: each holds all weights (none: DDP) or a shard (fsdp: FSDP2)",
    )
    workers: PositiveInt = Field(default=2, description="threads that load images")
    holdout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="fraction of the images, at least 64 and at most 256, that are never trained on but measured (see "
        "log.holdout_every); of fewer than 640 images none",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="fixes weights, data order, times and noise")

    @model_validator(mode="after")
    def only_a_start_has_parts(self) -> Self:
        if self.init_from is None and self.changed("reinit", "trainable", "objective"):
            raise UserError("reinit, trainable and objective=transition go with init_from, the model to begin with")
        return self

    @model_validator(mode="after")
    def transitions_have_their_own_times(self) -> Self:
        if self.objective == "transition" and (others := self.changed(*TIMES, "reinit")):
            raise UserError(f"{', '.join(others)}: not with objective=transition; remove it")
        return self

    @model_validator(mode="after")
    def the_density_has_its_own_numbers(self) -> Self:
        if useless := self.changed(*numbers_of_others(self.time_density)):
            raise UserError(f"{', '.join(useless)}: no effect with time_density={self.time_density}; remove it")
        return self


class RunLogSettings(Settings):
    """What any training writes meanwhile."""

    checkpoint_every: PositiveInt = Field(default=500, description="steps between checkpoints")
    keep_checkpoints: PositiveInt = Field(default=2, description="older ones are removed")
    export_at: tuple[PositiveInt, ...] = Field(
        default=(), description="steps at which the averaged weights are also kept as a model, in exports/"
    )
    holdout_every: PositiveInt = Field(
        default=250, description="steps between measurements of the loss on images held out by training.holdout"
    )
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        default=(), description="where figures go beside log.jsonl: tensorboard, wandb, trackio (need their packages)"
    )


class LogSettings(RunLogSettings):
    """What is written while it trains."""

    sample_every: PositiveInt | None = Field(default=1000, description="steps between sample sheets; null: none")
    sample_steps: PositiveInt = Field(default=20, description="steps of the sample sheets, of ab2 (epsilon: ddim)")
    sample_guidance: float = Field(default=2.0, ge=0, description="guidance scale of the sample sheets")
    distance_every: PositiveInt | None = Field(
        default=None, description="steps between measurements of the distance to real images; null: none"
    )
    distance_to: str | None = Field(
        default=None, description="these real images, as for fitv2 evaluate --reference; null: those of data.source"
    )
    distance_images: int = Field(default=300, ge=20, description="images that are made for a distance")


class Recipe(Settings):
    """A whole run. Which settings exist depends on model.architecture and data.source."""

    model: ModelSettings = Field(default=FiTv2Settings(architecture="FiTv2"), discriminator="architecture")
    data: Annotated[
        Annotated[FashionSettings, Tag("fashion")]
        | Annotated[EmojiSettings, Tag("emoji")]
        | Annotated[FolderSettings, Tag("folder")],
        Discriminator(kind_of_source),
    ] = FashionSettings(source="fashion")
    training: TrainingSettings = TrainingSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="before")
    @classmethod
    def default_kinds(cls, tree: Any) -> Any:
        """The architecture and the source of sections that do not name them."""
        kinds = {"model": {"architecture": "FiTv2"}, "data": {"source": "fashion"}}
        if not isinstance(tree, dict):
            return tree
        return tree | {s: kind | tree[s] for s, kind in kinds.items() if isinstance(tree.get(s), dict)}

    @model_validator(mode="after")
    def every_setting_has_an_effect(self) -> Self:
        model, training, useless = self.model, self.training, []
        if isinstance(model, GRIDS):
            useless = training.changed("init_from", "reinit", "trainable", "compile", "sharding")
        elif model.extrapolation is not None and training.init_from is None:
            raise UserError("model.extrapolation goes with training.init_from: it extends the size of that model")
        elif model.extrapolation is not None and training.objective == "transition":
            raise UserError("model.extrapolation: not with training.objective=transition; remove it")
        if model.prediction == "epsilon":
            useless += training.changed(*TIMES, "objective")
        if not isinstance(model, FiTv2Settings) or model.internal_head is None:
            useless += training.changed("internal_weight")
        if useless:
            keys = ", ".join(f"training.{key}" for key in useless)
            raise UserError(
                f"{keys}: no effect with model.architecture={model.architecture} that predicts {model.prediction}"
                f"{'' if 'training.internal_weight' not in keys else ' and has no internal_head'}; remove it"
            )
        return self

    @model_validator(mode="after")
    def sheets_can_be_made(self) -> Self:
        """A training must not end at its first sample sheet."""
        log = self.log
        if self.model.prediction == "epsilon" and log.sample_every is not None and log.sample_steps > DIFFUSION_STEPS:
            raise UserError(
                f"log.sample_steps={log.sample_steps} is more than the {DIFFUSION_STEPS} steps of a network that "
                "predicts epsilon: lower it"
            )
        return self


SECTIONS: dict[str, tuple[type[Settings], ...]] = {
    "model": tuple(ARCHITECTURES.values()),
    "data": (FashionSettings, EmojiSettings, FolderSettings),
    "training": (TrainingSettings,),
    "log": (LogSettings,),
}

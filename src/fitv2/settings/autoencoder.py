"""The settings of `fitv2 autoencoder`: which network, on which images, how it is trained."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from ..errors import UserError
from .data import Settings
from .recipe import Recipe, RunLogSettings, ScheduleSettings

# Every width is a multiple of it: the number of groups of each GroupNorm.
GROUPS = 8


class AutoencoderSettings(Settings):
    """The network, an AutoencoderKL of diffusers without attention."""

    widths: tuple[PositiveInt, ...] = Field(
        default=(32, 48, 96, 176),
        description="channels from full resolution to that of the latent; each width but the last halves both sides",
    )
    latent_channels: PositiveInt = Field(default=8, description="numbers per latent pixel")
    layers: PositiveInt = Field(default=1, description="residual blocks per width; the decoder has one more")

    @model_validator(mode="after")
    def widths_fit_the_groups(self) -> Self:
        if len(self.widths) < 2 or any(width % GROUPS for width in self.widths):
            raise UserError(f"model.widths={list(self.widths)} must be two or more multiples of {GROUPS}")
        return self

    @property
    def factor(self) -> int:
        """Image pixels per latent pixel on each axis."""
        return 2 ** (len(self.widths) - 1)


class CropSettings(Settings):
    """The images, and what is cut out of them."""

    sources: Annotated[
        tuple[str, ...],
        BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
        Field(min_length=1, description="folders of images, lists of image files, emoji, or emoji:FOLDER"),
    ]
    crop: PositiveInt = Field(default=128, description="side of the squares that are cut out, in pixels")
    resolution: PositiveInt = Field(
        default=512, description="images of more pixels than a square of this side are scaled down to that number"
    )
    min_scale: float = Field(default=0.5, gt=0, le=1, description="draw images at random linear scales from this to 1")


class AutoencoderTrainingSettings(ScheduleSettings):
    """How the autoencoder is trained."""

    learning_rate: PositiveFloat = Field(default=5e-4, description="peak learning rate")
    decay_fraction: float = Field(
        default=0.3, ge=0, le=1, description="last fraction of the steps, with linear decay to zero"
    )
    init_from: str | None = Field(
        default=None,
        description="an autoencoder of another training run (its folder), of the same model settings, to begin with",
    )
    trainable: Literal["all", "decoder"] = Field(
        default="all",
        description="with init_from: all, or the decoder alone, so that latents and latent models stay valid",
    )
    batch_size: PositiveInt = Field(default=8, description="crops of a step")
    beta2: float = Field(default=0.99, gt=0, lt=1, description="AdamW's second-moment decay")
    max_grad_norm: float = Field(default=1.0, gt=0, description="largest norm of the gradient")
    ema_decay: float = Field(default=0.999, gt=0, lt=1, description="decay of the averaged weights, warmed up")
    perceptual_weight: NonNegativeFloat = Field(
        default=0.1, description="weight of the distance of EfficientNet-Lite0's features; L1 has 1"
    )
    kl_weight: NonNegativeFloat = Field(
        default=1e-4, description="weight of the divergence of a latent number from a standard normal one"
    )
    halved_weight: NonNegativeFloat = Field(
        default=0.0, description="weight of the error of halved latents, decoded, against the halved image"
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        default="auto", description="bf16 (autocast), fp32, or auto: bf16 if the device has it when a run begins"
    )
    workers: PositiveInt = Field(default=2, description="threads that load images")
    holdout: float = Field(
        default=0.02,
        ge=0,
        lt=1,
        description="fraction of each source's images, at least 64 and at most 256, that are never trained on but "
        "measured (see log.holdout_every); of fewer than 640 images none",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="fixes weights, data order, crops and noise")

    @model_validator(mode="after")
    def a_fixed_encoder_is_trained_already(self) -> Self:
        if self.init_from is None and self.trainable != "all":
            raise UserError("trainable=decoder goes with init_from, the autoencoder whose encoder is kept")
        for weight in ("kl_weight", "halved_weight"):
            if self.trainable == "decoder" and self.changed(weight):
                raise UserError(f"{weight} acts on the encoder, and trainable=decoder keeps it: omit one of them")
        return self


class AutoencoderLogSettings(RunLogSettings):
    """What is written while the autoencoder trains."""

    sheet_every: PositiveInt | None = Field(
        default=500, description="steps between sheets of images beside their reconstructions; null: none"
    )


class AutoencoderRecipe(Settings):
    """A whole training of an autoencoder."""

    kind: Literal["autoencoder"] = "autoencoder"
    model: AutoencoderSettings = AutoencoderSettings()
    data: CropSettings
    training: AutoencoderTrainingSettings = AutoencoderTrainingSettings()
    log: AutoencoderLogSettings = AutoencoderLogSettings()

    @model_validator(mode="after")
    def crops_are_whole_latents(self) -> Self:
        factor, data = self.model.factor, self.data
        if data.crop % factor or data.crop > data.resolution:
            raise UserError(
                f"data.crop={data.crop} must be a multiple of {factor}, the pixels per latent pixel, and at most "
                f"data.resolution={data.resolution}"
            )
        return self


AnyRecipe = TypeVar("AnyRecipe", Recipe, AutoencoderRecipe)
AUTOENCODER_SECTIONS: dict[str, tuple[type[Settings], ...]] = {
    "model": (AutoencoderSettings,),
    "data": (CropSettings,),
    "training": (AutoencoderTrainingSettings,),
    "log": (AutoencoderLogSettings,),
}

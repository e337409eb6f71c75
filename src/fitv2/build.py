"""From a recipe to objects: the one place that maps settings to data set, network configuration and objective."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoints.model_folder import Pretrained, load_pretrained
from .classes import imagenet_names
from .data import cutouts, emoji, fashion
from .data.canvases import Canvases
from .data.cutouts import Cutouts
from .data.dataset import Dataset
from .data.fashion import Fashion
from .data.folder import ImageFolder
from .data.latent_shards import LatentShards
from .data.official import OfficialLatents, is_official
from .data.prepared import is_prepared, read_dataset
from .data.text_features import TEXT, TextFeatures, features_folder
from .diffusion.objective import DiffusionLoss, diffusion_loss, diffusion_loss_at
from .diffusion.schedule import linear_schedule
from .errors import UserError
from .flow.objective import FlowLoss, flow_loss, flow_loss_at
from .flow.path import TimeDensity, shift_times
from .flow.transition import Teacher, transition_loss
from .model.config import FiTConfig, NetworkConfig
from .model.prediction import least_noise
from .model.presets import architecture_of, config_of
from .model.rope import RopeScheme
from .sampling.spec import TWO_PASSES, without
from .settings.autoencoder import AnyRecipe
from .settings.data import DataSettings, EmojiSettings, FashionSettings, FolderSettings
from .settings.recipe import ARCHITECTURES, GRIDS, ModelSettings, Recipe, TrainingSettings
from .system.device import computes_bf16
from .text import PromptEncoder, StoredTexts, encoder_digest, load_text_encoder, read_channels
from .tokens import Denoiser, TokenBatch

logger = logging.getLogger(__name__)
# (network, images, labels (B,) on the CPU, the null label, a generator, context=of each image and of no text) to the
# loss.
Objective = Callable[..., FlowLoss | DiffusionLoss]
# The fraction of blocks, the last ones, that see the target of a transition (Decoupled MeanFlow: 8 of 28).
TARGET_FRACTION = 0.3
# Half the width of the difference that teaches transitions: in bfloat16 rounding would drown the narrow one of the
# paper (arXiv 2509.04394).
EPSILONS = {"fp32": 0.005, "bf16": 0.02}
# Steps that such a model is advised to be sampled in.
FEW_STEPS = 4
# (network, images, noise (T, C), times (B,) from 0, noise, to 1, data, labels (B,), context) to the loss of each image,
# (B,).
LossAt = Callable[[Denoiser, TokenBatch, Tensor, Tensor, Tensor, TokenBatch | None], Tensor]
# (numbers (B,) in [0, 1], tokens (B,)) to times (B,) in [0, 1].
Times = Callable[[Tensor, Tensor], Tensor]
# Channels of the images by Pillow's mode: the meaning of `data.channels`, also where latents have more.
IMAGE_CHANNELS = {"RGB": 3, "L": 1}


def with_precision(recipe: AnyRecipe, device: torch.device) -> AnyRecipe:
    """Returns the recipe with "auto" replaced by the precision that suits the device."""
    if recipe.training.precision != "auto":
        return recipe
    precision = "bf16" if computes_bf16(device) else "fp32"
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"precision": precision})})


def build_dataset(
    data: DataSettings, patch_size: int, cache_file: Path | None = None, captioned: bool = False
) -> Dataset:
    """Returns the data set of a recipe; captioned: with captions, for a model that is conditioned on them.

    Raises UserError if the data is not there or does not fit the model.
    """
    dataset = _build_dataset(data, patch_size, cache_file, captioned)
    if captioned and not dataset.captioned:
        again = ", or run fitv2 prepare again if the images have captions" if isinstance(dataset, LatentShards) else ""
        raise UserError(f"model.context needs captions, and {data.source} has none: set model.context=none{again}")
    return dataset


def _build_dataset(data: DataSettings, patch_size: int, cache_file: Path | None, captioned: bool) -> Dataset:
    if isinstance(data, FashionSettings):
        return build_fashion(data, patch_size)
    if isinstance(data, EmojiSettings):
        return build_canvases(data, emoji.cutouts(emoji.read_drawings(data.folder), data.classes), patch_size)
    if is_prepared(Path(data.source)):
        return build_prepared(data, patch_size)
    if is_official(Path(data.source)):
        return build_official(data, patch_size, cache_file)
    images = ImageFolder(
        Path(data.source),
        max_tokens=data.max_tokens,
        patch=patch_size,
        channels=data.channels if data.canvas is None else 4,
        preprocessing=data.preprocessing,
        flip=data.flip,
        min_scale=data.min_scale,
        further_tokens=data.further_tokens,
        # Trimmed images have other sizes than whole ones.
        cache_file=cache_file if cache_file is None or data.canvas is None else cache_file.with_stem("cutouts"),
        labels_from=data.labels,
        captioned=captioned and data.canvas is None,  # Canvases have captions of their own.
    )
    return images if data.canvas is None else build_canvases(data, cutouts.of_folder(images), patch_size)


def build_canvases(data: FolderSettings | EmojiSettings, drawings: Cutouts, patch_size: int) -> Canvases:
    """Returns the canvases of cut-outs; without data.canvas, each fills its own."""
    shape = (1.0, 1.0), None
    if data.canvas is not None:
        shape = data.canvas.aspect, data.canvas.objects
    return Canvases(drawings, data.max_tokens, patch_size, *shape, flip=data.flip, min_scale=data.min_scale)


def holds_latents(data: DataSettings) -> bool:
    """Whether the source holds latents of an autoencoder instead of images."""
    if not isinstance(data, FolderSettings):
        return False
    root = Path(data.source)
    return read_dataset(root)[0].kind == "moments" if is_prepared(root) else is_official(root)


def build_fashion(data: FashionSettings, patch_size: int) -> Fashion:
    """The built-in garments."""
    if patch_size != fashion.PATCH:
        raise UserError(f"fashion is cut into patches of {fashion.PATCH}; set model.patch_size={fashion.PATCH}")
    settings = data.min_scale, data.max_tokens, data.preprocessing, data.further_tokens
    return fashion.bundled(*settings) if data.split == "bundled" else fashion.full("train", data.folder, *settings)


def build_prepared(data: FolderSettings, patch_size: int) -> LatentShards:
    """Returns what `fitv2 prepare` made. Raises UserError for a setting that differs from the stored data."""
    shards = LatentShards(data.source, data.flip)
    fixed = {
        "max_tokens": shards.preparation.max_tokens,
        "channels": IMAGE_CHANNELS[shards.preparation.mode],
        "preprocessing": shards.preparation.preprocessing,
        # Mirror images that are there need not be used.
        "flip": data.flip and shards.preparation.flip,
    }
    refuse_others(data, fixed, patch_size, shards)
    return shards


def build_official(data: FolderSettings, patch_size: int, cache_file: Path | None) -> OfficialLatents:
    """Returns the authors' latents of ImageNet. Raises UserError for a setting that differs from the stored data."""
    refuse_others(data, {"channels": 3}, patch_size, OfficialLatents)
    return OfficialLatents(
        data.source,
        imagenet_names(),
        max_tokens=data.max_tokens if "max_tokens" in data.model_fields_set else None,
        preprocessing=data.preprocessing,
        flip=data.flip,
        cache_file=cache_file,
    )


def refuse_others(
    data: FolderSettings, fixed: dict[str, Any], patch_size: int, latents: LatentShards | type[OfficialLatents]
) -> None:
    """Raises UserError for a setting that was given and differs from that of the stored latents."""
    if data.further_tokens:
        raise UserError(f"{data.source} holds latents of one budget: data.further_tokens is for images; remove it")
    for key, value in ({"min_scale": 1.0, "canvas": None} | fixed).items():
        given = getattr(data, key)
        if key in data.model_fields_set and given != value:
            raise UserError(
                f"{data.source} was prepared with {key} {value}, and data.{key} is {given}: set "
                f"data.{key}={json.dumps(value)}, or prepare the images again"
            )
    if data.labels != "auto":
        raise UserError(
            f"{data.source} holds its labels, so that data.labels={data.labels} would have no effect; remove it, or "
            f"prepare the images again with --labels {data.labels}"
        )
    if patch_size != (fitting := latents.patch_size):
        raise UserError(f"{data.source} holds latents for patches of {fitting}; set model.patch_size={fitting}")


def build_base(training: TrainingSettings, dtype: torch.dtype | None = torch.float32) -> Pretrained | None:
    """Loads the model that training starts from, if the recipe names one; dtype None: on the meta device.

    Raises:
        UserError: There is no such model, or it is of a fixed grid, from which no training starts.
    """
    base = None if training.init_from is None else load_pretrained(training.init_from, dtype)
    if base is not None and base.model.config.fixed_grid is not None:
        raise UserError(f"{training.init_from} is of a fixed grid, and no training starts from such a model")
    return base


def build_model_config(recipe: Recipe, dataset: Dataset, base: Pretrained | None = None) -> NetworkConfig:
    """Returns the network of a recipe, with channels and classes from the data.

    Extrapolation starts at the size of the data; if the recipe extends the size of a base model, at that model's.

    Raises:
        UserError: The network takes one size, and the images are of several; or the settings do not go together.
    """
    hw, model = dataset.first_hw, recipe.model
    data: dict[str, Any] = {"in_channels": dataset.channels, "num_classes": dataset.num_classes}
    if isinstance(model, GRIDS):
        side = int(hw[0, 0])
        if (hw != side).any():
            raise UserError(
                f"{model.architecture} takes squares of one size, and the images are of several: set "
                "data.preprocessing=crop, and no data.min_scale"
            )
        return config_of(**model.network(), **data, side=side)
    if base is not None and model.encoder and base.text_encoder not in (None, model.encoder):
        raise UserError(
            f"{recipe.training.init_from} knows texts by the encoder {base.text_encoder}: set model.text_encoder to it"
        )
    rope = RopeScheme(train_side=max(math.isqrt(int(hw.prod(1).max())), 2))
    if model.extrapolation is not None:
        of_base = None if base is None else base.model.config
        rope = (of_base.rope if isinstance(of_base, FiTConfig) else rope).named(model.extrapolation)
    settings = model.network() | data
    if model.encoder is not None:
        settings["context_channels"] = read_channels(model.encoder)
    if recipe.training.objective == "transition":
        if base is not None and isinstance(base.model.config, FiTConfig):
            rope = base.model.config.rope
        settings |= {"target_blocks": max(round(TARGET_FRACTION * model.depth), 1), "internal_head": None}
    config = config_of(**settings, rope=rope)
    spread, sides = config.position_range, int(hw.max())
    if spread is not None and spread < sides:
        raise UserError(f"model.position_range={spread} is less than the {sides} rows or columns of an image")
    return config


def build_text_encoder(model: ModelSettings, dataset: Dataset) -> PromptEncoder | None:
    """Returns the text encoder of a recipe, or what it has made of the captions if the data set holds that.

    None for a network that is not conditioned on captions.
    """
    if model.encoder is None:
        return None
    if isinstance(dataset, LatentShards) and (dataset.root / TEXT).is_dir():
        folder = features_folder(dataset.root, encoder_digest(model.encoder))
        if folder.is_dir():
            return StoredTexts(TextFeatures(folder), model.encoder)
        logger.warning("%s holds features of another text encoder: captions are encoded in training", dataset.root)
    return load_text_encoder(model.encoder)


def model_settings(config: NetworkConfig) -> dict[str, Any]:
    """Returns the settings of a recipe's model section that build a network of this configuration."""
    architecture = architecture_of(config)
    keys = ARCHITECTURES[architecture].model_fields.keys() - {"architecture", "extrapolation", "text_encoder"}
    return {"architecture": architecture} | {key: getattr(config, key) for key in sorted(keys)}


def build_objective(training: TrainingSettings, config: NetworkConfig, teacher: Teacher | None = None) -> Objective:
    """Returns the training objective of a network: rectified flow, or denoising if it predicts epsilon.

    With a teacher, that of transitions.
    """
    if teacher is not None:
        return partial(
            transition_loss,
            teacher=teacher,
            class_dropout_prob=training.class_dropout_prob,
            epsilon=EPSILONS[training.precision],
        )
    if config.prediction == "epsilon":
        return partial(diffusion_loss, schedule=linear_schedule(), class_dropout_prob=training.class_dropout_prob)
    return partial(
        flow_loss,
        class_dropout_prob=training.class_dropout_prob,
        density=time_density(training),
        shift_tokens=training.shift_tokens,
        position_range=config.position_range,
        internal_weight=0.0 if config.internal_head is None else training.internal_weight,
        least_noise=least_noise(config),
    )


def time_density(training: TrainingSettings) -> TimeDensity:
    """Returns the density of the times of a flow's training."""
    return TimeDensity(
        kind=training.time_density, mean=training.time_mean, std=training.time_std, scale=training.time_scale
    )


def sampling_advice(training: TrainingSettings, of_base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns how to sample a model that was trained so: as training demands, else as the model that it began with."""
    if training.objective == "transition":
        return {"solver": "transition", "steps": FEW_STEPS, "guidance": 1.0}
    shift = {} if training.shift_tokens is None else {"shift_tokens": training.shift_tokens}
    # Passes depend on the sizes of training, which may be others here.
    return without(of_base or {}, *TWO_PASSES) | shift


def build_times(training: TrainingSettings, config: NetworkConfig) -> Times:
    """Returns what turns uniform numbers and the token counts of images into times as training draws them."""
    if config.prediction == "epsilon":
        return lambda u_B, tokens_B: u_B
    density = time_density(training)
    return lambda u_B, tokens_B: shift_times(density.times(u_B), tokens_B, training.shift_tokens)


def build_loss_at(config: NetworkConfig) -> LossAt:
    """Returns the training loss of a network as a function of times and noise, with the labels as they are."""
    if config.prediction != "epsilon":
        return lambda *inputs: flow_loss_at(*inputs, least_noise=least_noise(config)).per_image
    schedule = linear_schedule()

    def loss_at(
        network: Denoiser,
        data: TokenBatch,
        noise_TC: Tensor,
        t_B: Tensor,
        labels_B: Tensor,
        context: TokenBatch | None = None,
    ) -> Tensor:
        index_B = ((1 - t_B) * len(schedule)).long().clamp(max=len(schedule) - 1)
        loss = diffusion_loss_at(network, data, noise_TC, index_B, labels_B, schedule, context)
        return loss.mse + loss.bound

    return loss_at

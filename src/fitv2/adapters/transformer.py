"""FiT as a model of diffusers: its loading, saving, sharding, adapters, casting and offloading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from ..autoencoder import check_loaded, loaded
from ..checkpoints.model_folder import Pretrained, is_own_model, load_pretrained
from ..checkpoints.state_dict import read_state_dict
from ..errors import UserError
from ..finite import check_weights
from ..model.config import FiTConfig, Modulation, Prediction
from ..model.context import pack_context
from ..model.precision import autocast_in
from ..model.presets import ARCHITECTURES, architecture_of, config_of
from ..model.rope import RopeScheme
from ..model.transformer import FiT
from ..tokens import TokenBatch, upload

NOT_HERE = "{} is of a fixed grid: diffusers has DiTTransformer2DModel for such networks, and this is for FiT and FiTv2"


class FiTTransformer2DModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """The velocity network of FiTv2 (or the noise network of FiT) behind the interface of diffusers.

    num_embeds_ada_norm: number of classes; the label of that number is the null class. sample_size: side of a square
    latent where a call names no size. rope: fields of `fitv2.RopeScheme`. context: "none", "cross" or "joint", of
    tokens of cross_attention_dim numbers (see `fitv2.model.context`). qk_norm, modulation, prediction: as in
    `fitv2.FiTConfig`; None: as the architecture has it. The weights are those of `fitv2.FiT`, under
    "fit.". Raises ValueError as `fitv2.FiTConfig` does.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["FiTBlock"]
    _repeated_blocks: ClassVar = ["FiTBlock"]
    _skip_layerwise_casting_patterns: ClassVar = ["x_embedder", "t_embedder", "y_embedder", "adaLN", "norm"]

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        num_layers: int = 36,
        patch_size: int = 2,
        in_channels: int = 4,
        num_embeds_ada_norm: int = 1000,
        mlp_ratio: float = 4.0,
        adaln_lora_rank: int | None = None,
        qk_norm: bool | None = None,
        qk_norm_affine: bool = False,
        modulation: Modulation | None = None,
        prediction: Prediction | None = None,
        rope: dict[str, Any] | None = None,
        sample_size: int = 32,
        architecture: str = "FiTv2",
        context: str = "none",
        cross_attention_dim: int = 768,
    ) -> None:
        super().__init__()
        if not issubclass(ARCHITECTURES.get(architecture, FiTConfig), FiTConfig):
            raise UserError(NOT_HERE.format(architecture))
        self.fit = FiT(
            config_of(
                architecture,
                width=num_attention_heads * attention_head_dim,
                depth=num_layers,
                heads=num_attention_heads,
                patch_size=patch_size,
                in_channels=in_channels,
                num_classes=num_embeds_ada_norm,
                mlp_ratio=mlp_ratio,
                lora_rank=adaln_lora_rank,
                qk_norm=qk_norm,
                qk_norm_affine=qk_norm_affine,
                modulation=modulation,
                prediction=prediction,
                rope=rope,
                context=context,
                context_channels=cross_attention_dim,
            )
        )
        self.gradient_checkpointing = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs) -> FiTTransformer2DModel:
        """`builtin:NAME` or a model folder of `fitv2 train` or `fitv2 convert` (with `torch_dtype` alone), or what
        diffusers knows, with its own arguments.
        """
        if is_own_model(pretrained_model_name_or_path):
            return cls.from_model(load_pretrained(pretrained_model_name_or_path, own_dtype(kwargs)))
        name, wants_info = str(pretrained_model_name_or_path), kwargs.pop("output_loading_info", False)
        model, found = loaded(super().from_pretrained, name, output_loading_info=True, **kwargs)
        check_loaded(found, name)
        check_weights(model.state_dict(), name)
        return (model, found) if wants_info else model

    def save_pretrained(self, *args, **kwargs) -> None:
        """As diffusers does. Raises UserError where an adapter (LoRA) is among the weights: it could not be loaded."""
        check_no_adapter(self)
        super().save_pretrained(*args, **kwargs)

    def load_lora_adapter(self, pretrained_model_name_or_path_or_dict, prefix: str | None = None, **kwargs) -> None:
        """As diffusers does, and finds the file and the prefix of the names by itself where they are not given.

        Raises UserError for an adapter of another model, and NotFinite for one with NaN or infinity.
        """
        source = pretrained_model_name_or_path_or_dict
        if isinstance(source, dict):
            state = source
        elif Path(source).exists():
            file = lora_file(Path(source), kwargs)
            state, source = read_state_dict(file), str(file.parent)
            kwargs |= {"weight_name": file.name}
        else:
            return super().load_lora_adapter(source, prefix=prefix, **kwargs)
        if prefix is None and state and all(name.startswith("transformer.") for name in state):
            prefix = "transformer"
        check_lora(self, {name.removeprefix(f"{prefix}."): tensor for name, tensor in state.items()})
        return super().load_lora_adapter(source, prefix=prefix, **kwargs)

    @classmethod
    def from_model(cls, pretrained: Pretrained) -> FiTTransformer2DModel:
        """The network of a model of our own, sharing its weights."""
        sizes = [shape for of_class in pretrained.shapes for shape in of_class]
        return cls.from_fit(pretrained.model, max(sizes[0][:2]) if sizes else 32)

    @classmethod
    def from_fit(cls, model: FiT, sample_size: int = 32) -> FiTTransformer2DModel:
        """The same network, sharing its weights. Raises ValueError for one of a fixed grid."""
        if not isinstance(model, FiT):
            raise UserError(NOT_HERE.format(architecture_of(model.config)))
        with torch.device("meta"):
            adapter = cls(**model_settings(model.config), sample_size=sample_size)
        adapter.fit = model
        return adapter.train(model.training)

    def forward(
        self,
        hidden_states: Tensor | TokenBatch,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | TokenBatch | None = None,
        rope: RopeScheme | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """The network's output in the shape of its input: (B, C, H, W), or (T, C) for a packed batch.

        timestep: (B,) or one for all, in [0, 1] where 1 is data (FiT: the step, 0 to 999), never rounded to integers.
        class_labels: (B,) int64; None: no class. encoder_hidden_states: context tokens (B, S, E), or a context batch of
        `fitv2.model.context.pack_context` where each image has its own number of them. rope: how positions are turned
        in this call. The output is the velocity towards the data; schedulers of diffusers integrate towards noise and
        want its negative.
        """
        packed = isinstance(hidden_states, TokenBatch)
        batch = hidden_states if packed else TokenBatch.from_latents(list(hidden_states), self.config.patch_size)
        device = batch.x.device
        if class_labels is None:
            class_labels = torch.full((len(batch),), self.fit.null_label, device=device)
        t_B = upload(torch.as_tensor(timestep), device).float().expand(len(batch))
        context = encoder_hidden_states
        if isinstance(context, Tensor):
            context = pack_context(context.unbind(0))
        self.fit.activation_checkpointing = self.gradient_checkpointing
        # By the model's dtype, not its weights': with layerwise casting those are stored in another one.
        with autocast_in(self.dtype, device):
            output = self.fit(batch, t_B, class_labels, rope=rope, context=context).to(batch.x.dtype)
        if not packed:
            output = torch.stack(batch.with_x(output).to_latents(self.config.patch_size))
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)


def lora_file(path: Path, options: dict[str, Any]) -> Path:
    """The file of an adapter in a folder, by name where that is given. Raises UserError where it is not clear which."""
    if path.is_file():
        return path
    folder, name = path / (options.pop("subfolder", None) or ""), options.pop("weight_name", None)
    files = [folder / name] if name else sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise UserError(f"{folder} holds {len(files)} files *.safetensors; name the adapter's with weight_name=...")
    return files[0]


def check_lora(model: FiTTransformer2DModel, state: Mapping[str, Tensor]) -> None:
    """Raises UserError for an adapter of modules that the model does not have, NotFinite for one of NaN."""
    modules = {name for name, _ in model.named_modules()}
    targets = dict.fromkeys(name.partition(".lora_")[0] for name in state if ".lora_" in name)
    if unknown := [name for name in targets if name not in modules]:
        raise UserError(f"the adapter is of another model: this one has no {', '.join(unknown)}")
    check_weights(state, "the adapter")


def check_no_adapter(model: FiTTransformer2DModel) -> None:
    """Raises UserError where weights of an adapter are among those of the model."""
    if names := list(getattr(model, "peft_config", None) or {}):
        raise UserError(
            f"the transformer has an adapter ({', '.join(names)}), which would be saved as a part of its weights: save "
            f"it alone with save_lora_adapter(FOLDER, adapter_name={names[0]!r}), then unload_lora(); or make it part "
            "of the weights with fuse_lora() and unload_lora()"
        )


def own_dtype(kwargs: dict[str, Any]) -> torch.dtype:
    """The only argument that loading a model of our own takes. Raises ValueError for others."""
    dtype = kwargs.pop("torch_dtype", None) or kwargs.pop("dtype", None) or torch.float32
    if kwargs or not isinstance(dtype, torch.dtype):
        given = ", ".join(kwargs) or f"the dtype {dtype!r}"
        raise UserError(f"a model of this project's own is loaded with torch_dtype=... alone, without {given}")
    return dtype


def model_settings(config: FiTConfig) -> dict[str, Any]:
    """A configuration in the words of diffusers."""
    return {
        "num_attention_heads": config.heads,
        "attention_head_dim": config.width // config.heads,
        "num_layers": config.depth,
        "patch_size": config.patch_size,
        "in_channels": config.in_channels,
        "num_embeds_ada_norm": config.num_classes,
        "mlp_ratio": config.mlp_ratio,
        "adaln_lora_rank": config.lora_rank,
        "qk_norm": config.qk_norm,
        "qk_norm_affine": config.qk_norm_affine,
        "modulation": config.modulation,
        "prediction": config.prediction,
        "rope": asdict(config.rope),
        "architecture": architecture_of(config),
        "context": config.context,
        "cross_attention_dim": config.context_channels,
    }

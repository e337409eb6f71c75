"""FiT as a model of diffusers: its loading, saving, sharding, adapters, casting and offloading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from ..checkpoints.model_folder import Pretrained, is_own_model, load_pretrained
from ..checkpoints.state_dict import read_state_dict
from ..errors import UserError
from ..finite import check_weights
from ..images.autoencoder import loaded
from ..messages import check_known
from ..model.config import Context, FiTConfig, FiTv1Config, Modulation, NetworkConfig, Prediction, RopeScheme
from ..model.execution import Cache
from ..model.network import Network
from ..model.numerics import autocast_in
from ..model.presets import ARCHITECTURES, architecture_of
from ..model.transformer import FiT
from ..tokens import TokenBatch, pack_context, upload

# In which networks compute.
COMPUTE_DTYPES = torch.float32, torch.float64, torch.bfloat16, torch.float16
# The timestep of pure noise in diffusers.
TIMESTEPS = 1000
KINDS: dict[str, type[FiTConfig]] = {"FiTv2": FiTConfig, "FiT": FiTv1Config}
# The fields of a configuration by their names in diffusers.
OUR_NAMES = {
    **{name: name for name in ("patch_size", "in_channels", "mlp_ratio", "qk_norm", "qk_norm_affine")},
    **{name: name for name in ("modulation", "prediction", "rope", "context")},
    **{name: name for name in ("internal_head", "position_range", "target_blocks")},
    "num_attention_heads": "heads",
    "num_layers": "depth",
    "num_embeds_ada_norm": "num_classes",
    "adaln_lora_rank": "lora_rank",
    "cross_attention_dim": "context_channels",
}
NOT_HERE = "{} is of a fixed grid: diffusers has DiTTransformer2DModel for such networks, and this is for FiT and FiTv2"


class FiTTransformer2DModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """The velocity network of FiTv2 (or the noise network of FiT) behind the interface of diffusers.

    It keeps the convention of diffusers' flow transformers: `timestep` is 1000 * sigma, from 1000 at noise to 0 at
    data, and the output is noise minus data. The schedulers of diffusers work with it::

        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(25)
        for t in scheduler.timesteps:
            velocity = transformer(latents, timestep=t, class_labels=labels).sample
            latents = scheduler.step(velocity, t, latents).prev_sample

    An adapter (LoRA) of peft is saved apart, and loaded again without options::

        transformer.add_adapter(LoraConfig(r=8, target_modules=["qkv", "proj"]), "mine")
        transformer.save_lora_adapter("folder", adapter_name="mine")
        transformer.load_lora_adapter("folder")

    The weights are those of `fitv2.FiT`, under "fit.".

    Args:
        num_attention_heads: `fitv2.FiTConfig.heads`.
        attention_head_dim: Numbers per head; times the heads, the width.
        num_layers: `fitv2.FiTConfig.depth`.
        num_embeds_ada_norm: `fitv2.FiTConfig.num_classes`.
        adaln_lora_rank: `fitv2.FiTConfig.lora_rank`.
        cross_attention_dim: `fitv2.FiTConfig.context_channels`.
        patch_size: As in `fitv2.FiTConfig`, like every name from here to `context`; None means the architecture's
            default.
        in_channels: Channels of a latent.
        mlp_ratio: Hidden width of the feed-forward network by the width.
        qk_norm: How queries and keys are normalised.
        qk_norm_affine: Whether that normalisation learns a scale.
        modulation: How the condition modulates a block.
        prediction: What the network predicts.
        context: How the context enters.
        internal_head: The number of blocks before a second head, for internal guidance.
        position_range: The range of random positions that it was trained with.
        target_blocks: The number of last blocks that see the time to which a step leads.
        rope: Fields of `fitv2.RopeScheme`.
        sample_size: Side of a square latent where a call names no size.
        architecture: "FiTv2" or "FiT".

    Raises:
        UserError: As `fitv2.FiTConfig` does, and for an architecture of a fixed grid.
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
        context: Context = "none",
        cross_attention_dim: int = 768,
        internal_head: int | None = None,
        position_range: int | None = None,
        target_blocks: int = 0,
    ) -> None:
        super().__init__()
        check_known("architecture", architecture, ARCHITECTURES)
        if architecture not in KINDS:
            raise UserError(NOT_HERE.format(architecture))
        settings: dict[str, Any] = {own: self.config[name] for name, own in OUR_NAMES.items()}
        settings = {name: value for name, value in settings.items() if value is not None}
        self.fit = FiT(KINDS[architecture](width=num_attention_heads * attention_head_dim, **settings))
        self.gradient_checkpointing = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike | None, **kwargs) -> Any:
        """Loads `builtin:NAME` or a model folder of `fitv2 train` or `fitv2 convert` (with `torch_dtype` alone), else
        as diffusers does, with its arguments.
        """
        name = str(pretrained_model_name_or_path)
        if is_own_model(name):
            return cls.from_model(load_pretrained(name, own_dtype(kwargs)))
        wants_info = kwargs.pop("output_loading_info", False)
        model, found = loaded(super().from_pretrained, name, **kwargs)
        check_weights(model.state_dict(), name)
        return (model, found) if wants_info else model

    def save_pretrained(self, *args, **kwargs) -> None:
        """Saves as diffusers does. Raises UserError if the weights have an adapter (LoRA) among them."""
        check_no_adapter(self)
        super().save_pretrained(*args, **kwargs)

    def load_lora_adapter(
        self, pretrained_model_name_or_path_or_dict, prefix: Any = None, hotswap: bool = False, **kwargs
    ) -> None:
        """Loads as diffusers does, and finds the file and the prefix of the names by itself where they are not given.

        Raises UserError for an adapter of another model, and NotFinite for one with NaN or infinity.
        """
        source = state = pretrained_model_name_or_path_or_dict
        if not isinstance(source, dict) and Path(source).exists():
            file = lora_file(Path(source), kwargs)
            state, source, kwargs["weight_name"] = read_state_dict(file), str(file.parent), file.name
        if isinstance(state, dict):
            if prefix is None and state and all(name.startswith("transformer.") for name in state):
                prefix = "transformer"
            before = "" if prefix is None else f"{prefix}."
            check_lora(self, {name.removeprefix(before): state[name] for name in state if name.startswith(before)})
        super().load_lora_adapter(source, prefix=prefix, hotswap=hotswap, **kwargs)  # pyright: ignore[reportArgumentType]

    @classmethod
    def from_model(cls, pretrained: Pretrained) -> FiTTransformer2DModel:
        """Wraps the network of a model of our own, sharing its weights."""
        sizes = [shape for of_class in pretrained.shapes for shape in of_class]
        return cls.from_fit(pretrained.model, max(sizes[0][:2]) if sizes else 32)

    @classmethod
    def from_fit(cls, model: Network, sample_size: int = 32) -> FiTTransformer2DModel:
        """Wraps a network, sharing its weights. Raises UserError for one of a fixed grid."""
        if not isinstance(model, FiT):
            raise UserError(NOT_HERE.format(architecture_of(model.config)))
        config = model.config
        settings: dict[str, Any] = {name: getattr(config, own) for name, own in OUR_NAMES.items()}
        settings |= {"rope": asdict(config.rope), "architecture": architecture_of(config)}
        with torch.device("meta"):
            adapter = cls(**settings, attention_head_dim=config.head_dim, sample_size=sample_size)
        adapter.fit = model
        return adapter.train(model.training)

    def forward(
        self,
        hidden_states: Tensor | TokenBatch,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | TokenBatch | None = None,
        rope: RopeScheme | None = None,
        cache: Cache | None = None,
        internal: bool = False,
        target_B: Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Returns the output in the shape of the input: noise minus data, or for FiT the noise and its variance.

        Args:
            hidden_states: (B, C, H, W), or a packed batch with x (T, C).
            timestep: (B,) or one for all, 1000 * sigma from 0 at data to 1000 at noise (FiT: the step, 0 to 999); never
                rounded to integers.
            class_labels: (B,) int64; None means no class.
            encoder_hidden_states: Context tokens (B, S, E), or a context batch of `fitv2.tokens.pack_context`
                where each image has its own number of them.
            rope: The RoPE scheme of this call.
            cache: The state that successive calls of a sampling share, see `fitv2.sampling.cache.BlockCache`.
            internal: Whether the output of the internal head follows in further channels, see `fitv2.FiT.forward`.
            target_B: (B,), times in [0, 1] (1 is data) to which steps lead, for a model trained for few steps.
            return_dict: Whether to return a Transformer2DModelOutput instead of a tuple.
        """
        config = self.fit.config
        packed = isinstance(hidden_states, TokenBatch)
        batch = hidden_states if packed else TokenBatch.from_latents(list(hidden_states), config.patch_size)
        device, velocity = batch.x.device, config.prediction != "epsilon"
        if class_labels is None:
            class_labels = torch.full((len(batch),), config.null_label, device=device)
        timestep = upload(torch.as_tensor(timestep), device)
        t_B = (from_timestep(timestep) if velocity else timestep).float().expand(len(batch))
        context = encoder_hidden_states
        if isinstance(context, Tensor):
            context = pack_context(context.unbind(0))
        self.fit.activation_checkpointing = self.gradient_checkpointing
        # By the model's dtype, not its weights': with layerwise casting those are stored in another one.
        with autocast_in(self.dtype, device):
            options: dict[str, Any] = {"rope": rope, "cache": cache, "internal": internal, "target_B": target_B}
            output = self.fit(batch, t_B, class_labels, context, **options).to(batch.x.dtype)
        output = -output if velocity else output
        if not packed:
            output = torch.stack(batch.with_x(output).to_latents(config.patch_size))
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)


class HookedModel:
    """The transformer as `generate` calls a model. It is called as diffusers calls it, so that its hooks run."""

    def __init__(self, transformer: FiTTransformer2DModel, device: torch.device) -> None:
        self.transformer, self.device = transformer, device
        self.config: NetworkConfig = transformer.fit.config

    def __call__(
        self, batch: TokenBatch, t_B: Tensor, y_B: Tensor, context: TokenBatch | None = None, **options: Any
    ) -> Tensor:
        """Returns the output in this package's convention: t = 1 is data, the velocity is data minus noise."""
        velocity = self.config.prediction != "epsilon"
        options |= {"class_labels": y_B, "encoder_hidden_states": context, "return_dict": False}
        timestep = to_timestep(t_B) if velocity else t_B
        output = self.transformer(batch.to(self.transformer.dtype), timestep, **options)[0].float()
        return -output if velocity else output


def to_timestep(t: Tensor) -> Tensor:
    """Returns the timesteps of diffusers, 1000 * sigma, for times where 1 is data.

    In float64, so that `from_timestep` gives the same float32 times back to the last bit; MPS has float32 alone.
    """
    return (1 - (t if t.device.type == "mps" else t.double())) * TIMESTEPS


def from_timestep(timestep: Tensor) -> Tensor:
    """Returns times where 1 is data, for the timesteps of diffusers."""
    return 1 - (timestep if timestep.dtype == torch.float64 else timestep.float()) / TIMESTEPS


def lora_file(path: Path, options: dict[str, Any]) -> Path:
    """Returns the file of an adapter in a folder, by name if it is given. Raises UserError if it is not clear which."""
    if path.is_file():
        return path
    folder, name = path / (options.pop("subfolder", None) or ""), options.pop("weight_name", None)
    files = [folder / name] if name else sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise UserError(f"{folder} holds {len(files)} files *.safetensors; name the adapter's with weight_name=...")
    return files[0]


def check_lora(model: FiTTransformer2DModel, state: Mapping[str, Tensor]) -> None:
    """Raises UserError for an adapter that the model has not all modules of, NotFinite for one of NaN.

    diffusers loads nothing of some of them, and leaves the model with half of others.
    """
    modules: dict[str, Any] = dict(model.named_modules())
    targets = {name: name.partition(".lora_")[0] for name in state if ".lora_" in name}
    if not targets and not any(".lokr_" in name for name in state):
        raise UserError("the adapter holds no LoRA of this model: take another file, or omit the prefix")
    if unknown := [name for name in dict.fromkeys(targets.values()) if name not in modules]:
        raise UserError(f"the adapter is of another model: this one has no {', '.join(unknown)}")
    for name, target in targets.items():
        for part, axis in ((".lora_A.weight", 1), (".lora_B.weight", 0)):
            has, own = state[name].shape, modules[target].weight.shape
            if name.endswith(part) and has[axis] != own[axis]:
                raise UserError(f"the adapter is of another model: {name} is {tuple(has)}, for weights {tuple(own)}")
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
    """Returns the dtype, the only argument that loading a model of our own takes. Raises UserError for others."""
    dtype = kwargs.pop("torch_dtype", None) or kwargs.pop("dtype", None) or torch.float32
    if kwargs or dtype not in COMPUTE_DTYPES:
        given = ", ".join(kwargs) or f"the dtype {dtype!r}"
        raise UserError(f"a model of this project's own is loaded with torch_dtype=... alone, without {given}")
    return dtype

"""Checkpoints of the authors' code to ours and back. Our modules carry the authors' names, so the keys are theirs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError
from torch import Tensor

from ..errors import UserError
from ..finite import check_weights
from ..messages import advised
from ..model.config import DEFAULT_ROPE, AttentionFactor, FiTConfig, FiTv1Config, NetworkConfig, RopeMethod, RopeScheme
from ..model.network import bare_model, model_of
from ..model.presets import architecture_of
from ..model.transformer import FiT
from ..settings.yaml_text import read_yaml
from .state_dict import check_floating, plain_names, read_state_dict

# What makes each family, in the authors' arguments; an argument left out has its family's value.
FITV2 = {
    "use_sit": True,
    "learn_sigma": False,
    "use_swiglu": True,
    "use_swiglu_large": False,
    "q_norm": "layernorm",
    "k_norm": "layernorm",
    "adaln_type": "lora",
}
FIT1 = {
    "use_sit": False,
    "learn_sigma": True,
    "use_swiglu": True,
    "use_swiglu_large": True,
    "q_norm": None,
    "k_norm": None,
    "adaln_type": "normal",
}
BOTH = {
    "norm_type": "layernorm",
    "rel_pos_embed": "rope",
    "abs_pos_embed": None,
    "qkv_bias": True,
    "ffn_bias": True,
    "adaln_bias": True,
    "add_rel_pe_to_v": False,
}
# Method and attention factor of the authors' `custom_freqs`.
CUSTOM_FREQS: dict[str, tuple[RopeMethod, AttentionFactor]] = {
    "normal": ("none", "none"),
    "linear": ("interpolation", "none"),
    "ntk-aware": ("ntk-aware", "none"),
    "ntk-aware-pro1": ("ntk-aware", "pro1"),
    "ntk-aware-pro2": ("ntk-aware", "pro2"),
    "ntk-by-parts": ("ntk-by-parts", "none"),
    "yarn": ("yarn", "yarn"),
}


class Arguments(BaseModel):
    """The authors' constructor arguments that differ within a family: under our names, with theirs as aliases."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    width: PositiveInt = Field(alias="hidden_size")
    depth: PositiveInt
    heads: PositiveInt = Field(alias="num_heads")
    patch_size: PositiveInt = 2
    in_channels: PositiveInt = 4
    num_classes: NonNegativeInt = 1000
    mlp_ratio: PositiveFloat = 4.0
    lora_rank: PositiveInt | None = Field(default=None, alias="adaln_lora_dim")
    qk_norm_affine: bool = Field(default=False, alias="qk_norm_weight")

    rope_theta: PositiveFloat = 10000.0
    custom_freqs: str | None = "normal"
    decouple: bool = False
    ori_max_pe_len: PositiveInt | None = None
    max_pe_len_h: PositiveInt | None = None
    max_pe_len_w: PositiveInt | None = None
    online_rope: bool = False

    # Of training, or for the caller: with `time_shifting` s the network wants `flow.path.shift_time(t, s)` as its time.
    context_size: PositiveInt = 256
    time_shifting: PositiveFloat = 1
    class_dropout_prob: Any = None
    use_checkpoint: Any = None
    pretrain_ckpt: Any = None
    ignore_keys: Any = None
    finetune: Any = None


SIZES = ("width", "depth", "heads", "patch_size", "in_channels", "num_classes", "mlp_ratio")
FITV2_SIZES = (*SIZES, "lora_rank", "qk_norm_affine")


def from_official(state: dict[str, Tensor] | str | Path, /, **kwargs) -> FiT:
    """Returns a model with the authors' weights, in their dtype and eval mode: FiTv2, or FiT by arguments or keys.

    state: a state dict; the path of a .safetensors file or of a pickled one (.bin, .pt; never executed); or a sharded
    checkpoint's folder or index.json. kwargs: the authors' constructor arguments. At no time are there two copies of
    the weights of a file. Raises ValueError naming missing, extra or mis-shaped keys.
    """
    name = "the checkpoint"
    if isinstance(state, dict):
        state = {key: tensor.clone() for key, tensor in plain_names(state).items()}
    else:
        name, state = str(state), read_state_dict(Path(state))
    config = official_config(kwargs, shared_modulation="global_adaLN_modulation.1.weight" in state)
    check_floating(state)
    blocks = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    if blocks != config.depth:  # Said at once: building the other network could take for ever.
        raise UserError(f"depth={config.depth}, and the checkpoint has {blocks} blocks")
    check_weights(state, name)
    model = model_of(config, state)
    assert isinstance(model, FiT)  # As its configuration says.
    return model


def to_official(model: FiT) -> dict[str, Tensor]:
    """Returns the weights under the authors' keys; `official_kwargs(model.config)` has the arguments for them.

    Raises ValueError for a model that their code does not have: with a context, between FiT and FiTv2, of a fixed grid,
    or with adapters (LoRA) among its weights.
    """
    check_official(model.config)
    state = plain_names(model.state_dict())
    if state.keys() != bare_model(model.config).state_dict().keys():
        raise UserError("the model holds other tensors than its weights, such as a LoRA: fuse and unload it first")
    return state


def official_config(kwargs: Mapping[str, Any], shared_modulation: bool = True) -> FiTConfig:
    """Returns our configuration for the authors' constructor arguments.

    shared_modulation: whether the checkpoint has the AdaLN that all blocks share; it tells FiTv2 from FiT where the
    arguments do not. Raises ValueError for an argument that makes another network than these, or that is not known.
    """
    told = {kwargs[name] == value for name, value in FITV2.items() if name in kwargs and value != FIT1[name]}
    fitv2 = told.pop() if len(told) == 1 else shared_modulation
    fixed = BOTH | (FITV2 if fitv2 else FIT1)
    for name, value in fixed.items():
        if kwargs.get(name, value) != value:
            raise UserError(f"{name}={kwargs[name]!r} is not {'FiTv2' if fitv2 else 'FiT'}, which has {name}={value!r}")
    try:
        arguments = Arguments.model_validate({name: kwargs[name] for name in kwargs if name not in fixed})
    except ValidationError as error:
        first = error.errors()[0]
        why = {"missing": "is missing", "extra_forbidden": "is not known here"}.get(first["type"])
        why = why or f"is {first['input']!r}: {first['msg']}"
        raise UserError(f"the argument {first['loc'][0]} {why}") from None
    sizes = arguments.model_dump(include={*(FITV2_SIZES if fitv2 else SIZES)}, exclude_unset=True)
    return (FiTConfig if fitv2 else FiTv1Config)(**sizes, rope=official_rope(arguments))


def official_kwargs(config: FiTConfig) -> dict[str, Any]:
    """Returns the arguments with which the authors' code builds this network; `official_config` reads them back.

    Raises ValueError for a context, a mixture of FiT and FiTv2, or a RoPE scheme that their code does not have.
    """
    check_official(config)
    fitv2, rope = not isinstance(config, FiTv1Config), config.rope
    names = {kind: name for name, kind in CUSTOM_FREQS.items()}
    if (rope.method, rope.attention) not in names:
        raise UserError(f"the authors' code has no {rope.method} with the attention scale {rope.attention}")
    height, width = rope.target or (None, None)
    positions = {
        "rope_theta": rope.theta,
        "custom_freqs": names[rope.method, rope.attention],
        "decouple": rope.per_axis,
        "ori_max_pe_len": rope.train_side,
        "max_pe_len_h": height,
        "max_pe_len_w": width,
        "online_rope": rope.method != "none" and rope.target is None,
    }
    sizes = {Arguments.model_fields[n].alias or n: getattr(config, n) for n in (FITV2_SIZES if fitv2 else SIZES)}
    return sizes | BOTH | (FITV2 if fitv2 else FIT1) | positions


def check_official(config: NetworkConfig) -> None:
    """Raises UserError for a network that the authors' checkpoints cannot hold."""
    if not isinstance(config, FiTConfig):
        raise UserError(f"the authors' checkpoints are of FiT and FiTv2, not of {architecture_of(config)}")
    if config.context != "none":
        raise UserError(f"the authors' code has no model with context={config.context!r}")
    for part in ("qk_norm", "modulation", "prediction", "internal_head", "position_range", "target_blocks"):
        value = getattr(config, part)
        if value != getattr(type(config), part):
            name = architecture_of(config)
            raise UserError(f"the authors' checkpoints have no form for {name} with {part}={value}")


def official_rope(arguments: Arguments) -> RopeScheme:
    """Returns the RoPE scheme; online: frequencies by each image's own size, else by the given one."""
    name, side = arguments.custom_freqs, arguments.ori_max_pe_len
    if str(name).lower() not in CUSTOM_FREQS:
        advice = advised(str(name), CUSTOM_FREQS, f"known are {', '.join(CUSTOM_FREQS)}")
        raise UserError(f"custom_freqs={name!r} is not known here{advice}")
    method, attention = CUSTOM_FREQS[str(name).lower()]
    if method == "none":
        return RopeScheme(theta=arguments.rope_theta, train_side=side or DEFAULT_ROPE.train_side)
    if side is None:
        raise UserError(f"custom_freqs={name!r} needs ori_max_pe_len, the patches per side of training")
    target = None
    if not arguments.online_rope:
        if arguments.max_pe_len_h is None or arguments.max_pe_len_w is None:
            raise UserError(f"custom_freqs={name!r} needs max_pe_len_h and max_pe_len_w, or online_rope")
        target = arguments.max_pe_len_h, arguments.max_pe_len_w
    return RopeScheme(
        method=method,
        per_axis=arguments.decouple,
        attention=attention,
        train_side=side,
        theta=arguments.rope_theta,
        target=target,
    )


def read_official_config(path: Path) -> tuple[dict[str, Any], str | None]:
    """Returns the network's arguments in one of the authors' YAML files, and the autoencoder that it names.

    Raises ValueError for another file. Values that omegaconf would replace, such as ${tuple:0.9, 0.999}, are elsewhere.
    """
    part = content = read_yaml(path)
    for name in ("diffusion", "network_config", "params"):
        part = part.get(name) if isinstance(part, dict) else None
    if not isinstance(part, dict) or not all(isinstance(name, str) for name in part):
        raise UserError(f"{path} is not one of the authors' files: it has no diffusion.network_config.params")
    return part, content["diffusion"].get("pretrained_first_stage_model_path")

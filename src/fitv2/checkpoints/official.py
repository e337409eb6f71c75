"""Checkpoints of the authors' code to ours and back. Our modules carry the authors' names, so the keys are theirs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UserError
from ..finite import check_weights
from ..model.config import DEFAULT_ROPE, AttentionFactor, FiTConfig, FiTv1Config, NetworkConfig, RopeMethod, RopeScheme
from ..model.network import bare_model, model_of
from ..model.presets import architecture_of
from ..model.transformer import FiT
from ..yaml_text import read_yaml
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
# Of training, or for the caller: with `time_shifting` s the network wants `flow.path.shift_time(t, s)` as its time.
NOT_OF_THE_NETWORK = {
    "context_size",
    "class_dropout_prob",
    "use_checkpoint",
    "time_shifting",
    "pretrain_ckpt",
    "ignore_keys",
    "finetune",
}
# Their names of sizes and ours: all must be given of the first, of the second each has a default.
REQUIRED = {"hidden_size": "width", "depth": "depth", "num_heads": "heads"}
OPTIONAL = {"patch_size": "patch_size", "in_channels": "in_channels", "num_classes": "num_classes"}
OPTIONAL |= {"mlp_ratio": "mlp_ratio"}
FITV2_ONLY = {"adaln_lora_dim": "lora_rank", "qk_norm_weight": "qk_norm_affine"}
POSITIONS = ("rope_theta", "custom_freqs", "decouple", "ori_max_pe_len", "max_pe_len_h", "max_pe_len_w", "online_rope")
MAY_BE_NONE = {"adaln_lora_dim", "ori_max_pe_len", "max_pe_len_h", "max_pe_len_w"}
COUNTS = {*REQUIRED, *MAY_BE_NONE, "patch_size", "in_channels", "num_classes", "context_size"}
NUMBERS = {"mlp_ratio", "rope_theta", "time_shifting"}
SWITCHES = {"qk_norm_weight", "decouple", "online_rope"}
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


def from_official(state: dict[str, Tensor] | str | Path, /, **kwargs) -> FiT:
    """A model with the authors' weights, in their dtype and eval mode: FiTv2, or FiT where arguments or keys say so.

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
    """The weights under the authors' keys; `official_kwargs(model.config)` has the arguments that go with them.

    Raises ValueError for a model that theirs cannot be: with a context, between FiT and FiTv2, of a fixed grid, or with
    adapters (LoRA) among its weights.
    """
    check_official(model.config)
    state = plain_names(model.state_dict())
    if state.keys() != bare_model(model.config).state_dict().keys():
        raise UserError("the model holds other tensors than its weights, such as a LoRA: fuse and unload it first")
    return state


def official_config(kwargs: Mapping[str, Any], shared_modulation: bool = True) -> FiTConfig:
    """The authors' constructor arguments as our configuration.

    shared_modulation: whether the checkpoint has the AdaLN that all blocks share; it tells FiTv2 from FiT where the
    arguments do not. Raises ValueError for an argument that makes another network than these, or that is not known.
    """
    told = {kwargs[name] == value for name, value in FITV2.items() if name in kwargs and value != FIT1[name]}
    fitv2 = told.pop() if len(told) == 1 else shared_modulation
    family, name = (FITV2, "FiTv2") if fitv2 else (FIT1, "FiT")
    fixed = BOTH | family
    known = {*REQUIRED, *OPTIONAL, *FITV2_ONLY, *POSITIONS, *NOT_OF_THE_NETWORK, *fixed}
    for argument, value in kwargs.items():
        if argument not in known:
            raise UserError(f"the argument {argument!r} is not known here")
        if argument in fixed and value != fixed[argument]:
            raise UserError(f"{argument}={value!r} is not {name}, which has {argument}={fixed[argument]!r}")
    for argument in REQUIRED:
        if argument not in kwargs:
            raise UserError(f"the argument {argument} is missing: the authors' configuration file has it")
    for argument, value in kwargs.items():
        check_kind(argument, value)
    sizes = REQUIRED | OPTIONAL | (FITV2_ONLY if fitv2 else {})
    fields = {ours: kwargs[theirs] for theirs, ours in sizes.items() if theirs in kwargs}
    rope = official_rope(**{name: kwargs[name] for name in POSITIONS if name in kwargs})
    return (FiTConfig if fitv2 else FiTv1Config)(**fields, rope=rope)


def check_kind(argument: str, value: Any) -> None:
    """Raises ValueError for a value of another kind than the argument has."""
    if value is None and argument in MAY_BE_NONE:
        return
    whole = value if isinstance(value, int) and not isinstance(value, bool) else -1
    if argument in COUNTS and whole < (argument != "num_classes"):
        raise UserError(f"{argument}={value!r} is not a count; write the number itself")
    if argument in NUMBERS and not (isinstance(value, int | float) and 0 < value < math.inf):
        raise UserError(f"{argument}={value!r} is not a number above 0; YAML wants 1.0e+4, not 1e4")
    if argument in SWITCHES and not isinstance(value, bool):
        raise UserError(f"{argument}={value!r} is neither true nor false")


def official_kwargs(config: FiTConfig) -> dict[str, Any]:
    """The constructor arguments with which the authors' code builds this network; `official_config` reads them back.

    Raises ValueError for what their code does not have: a context, a mixture of FiT and FiTv2, or a RoPE scheme without
    a name there.
    """
    check_official(config)
    fitv2 = not isinstance(config, FiTv1Config)
    sizes = REQUIRED | OPTIONAL | (FITV2_ONLY if fitv2 else {})
    fields = {theirs: getattr(config, ours) for theirs, ours in sizes.items()}
    return fields | BOTH | (FITV2 if fitv2 else FIT1) | official_positions(config.rope)


def check_official(config: NetworkConfig) -> None:
    if not isinstance(config, FiTConfig):
        raise UserError(f"the authors' checkpoints are of FiT and FiTv2, not of {architecture_of(config)}")
    if config.context != "none":
        raise UserError(f"the authors' code has no model with context={config.context!r}")
    for part in ("qk_norm", "modulation", "prediction"):
        value = getattr(config, part)
        if value != getattr(type(config), part):
            name = architecture_of(config)
            raise UserError(f"the authors' checkpoints have no form for {name} with {part}={value}")


def official_positions(rope: RopeScheme) -> dict[str, Any]:
    names = {kind: name for name, kind in CUSTOM_FREQS.items()}
    if (rope.method, rope.attention) not in names:
        raise UserError(f"the authors' code has no {rope.method} with the attention scale {rope.attention}")
    height, width = rope.target or (None, None)
    return {
        "rope_theta": rope.theta,
        "custom_freqs": names[rope.method, rope.attention],
        "decouple": rope.per_axis,
        "ori_max_pe_len": rope.train_side,
        "max_pe_len_h": height,
        "max_pe_len_w": width,
        "online_rope": rope.method != "none" and rope.target is None,
    }


def official_rope(
    rope_theta: float = 10000.0,
    custom_freqs: str = "normal",
    decouple: bool = False,
    ori_max_pe_len: int | None = None,
    max_pe_len_h: int | None = None,
    max_pe_len_w: int | None = None,
    online_rope: bool = False,
) -> RopeScheme:
    """The authors' arguments about positions; online: frequencies by each image's own size, else by the given one."""
    if str(custom_freqs).lower() not in CUSTOM_FREQS:
        raise UserError(f"custom_freqs={custom_freqs!r} is not known here; known are {', '.join(CUSTOM_FREQS)}")
    method, attention = CUSTOM_FREQS[custom_freqs.lower()]
    if method == "none":
        return RopeScheme(theta=rope_theta, train_side=ori_max_pe_len or DEFAULT_ROPE.train_side)
    if ori_max_pe_len is None:
        raise UserError(f"custom_freqs={custom_freqs!r} needs ori_max_pe_len, the patches per side of training")
    target = None
    if not online_rope:
        if max_pe_len_h is None or max_pe_len_w is None:
            raise UserError(f"custom_freqs={custom_freqs!r} needs max_pe_len_h and max_pe_len_w, or online_rope")
        target = (max_pe_len_h, max_pe_len_w)
    return RopeScheme(
        method=method,
        per_axis=decouple,
        attention=attention,
        train_side=ori_max_pe_len,
        theta=rope_theta,
        target=target,
    )


def read_official_config(path: Path) -> tuple[dict[str, Any], str | None]:
    """The network's constructor arguments in one of the authors' YAML files, and the autoencoder that it names.

    What omegaconf would replace, such as ${tuple:0.9, 0.999}, is elsewhere. Raises ValueError for another file.
    """
    part = content = read_yaml(path)
    for name in ("diffusion", "network_config", "params"):
        part = part.get(name) if isinstance(part, dict) else None
    if not isinstance(part, dict) or not all(isinstance(name, str) for name in part):
        raise UserError(f"{path} is not one of the authors' files: it has no diffusion.network_config.params")
    return part, content["diffusion"].get("pretrained_first_stage_model_path")

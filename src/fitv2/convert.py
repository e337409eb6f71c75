"""Checkpoints of the authors' code to ours and back. Our modules carry the authors' names, so the keys are theirs."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .model.fit1 import FiT1Config
from .model.rope import PLAIN, RopeScheme
from .model.transformer import FiT, FiTConfig, model_of

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
# Method and attention factor of the authors' `custom_freqs`.
CUSTOM_FREQS = {
    "normal": ("none", "none"),
    "linear": ("interpolation", "none"),
    "ntk-aware": ("ntk-aware", "none"),
    "ntk-aware-pro1": ("ntk-aware", "pro1"),
    "ntk-aware-pro2": ("ntk-aware", "pro2"),
    "ntk-by-parts": ("ntk-by-parts", "none"),
    "yarn": ("yarn", "yarn"),
}
DAMAGED = "cannot be read ({}): it is damaged, or not a checkpoint; copy or download it again"


def from_official(state: dict[str, Tensor] | str | Path, **kwargs) -> FiT:
    """A model with the authors' weights, in their dtype and eval mode: FiTv2, or FiT where arguments or keys say so.

    state: a state dict; the path of a .safetensors file or of a pickled one (.bin, .pt; never executed); or a sharded
    checkpoint's folder or index.json. kwargs: the authors' constructor arguments. At no time are there two copies of
    the weights of a file. Raises ValueError naming missing, extra or mis-shaped keys.
    """
    if isinstance(state, dict):
        state = {key: tensor.clone() for key, tensor in state.items()}
    else:
        state = read_state(Path(state))
    config = official_config(shared_modulation="global_adaLN_modulation.1.weight" in state, **kwargs)
    return model_of(config, state)


def to_official(model: FiT) -> dict[str, Tensor]:
    """The weights under the authors' keys. Raises ValueError for a model that theirs cannot be: one with a context."""
    if model.config.context != "none":
        raise ValueError(f"the authors' code has no model with context={model.config.context!r}")
    return model.state_dict()


def official_config(*, shared_modulation: bool = True, **kwargs) -> FiTConfig:
    """The authors' constructor arguments as our configuration.

    shared_modulation: whether the checkpoint has the AdaLN that all blocks share; it tells FiTv2 from FiT where the
    arguments do not. Raises ValueError for an argument that makes another network than these, or that is not known.
    """
    told = {kwargs[name] == value for name, value in FITV2.items() if name in kwargs and value != FIT1[name]}
    fitv2 = told.pop() if len(told) == 1 else shared_modulation
    family, name = (FITV2, "FiTv2") if fitv2 else (FIT1, "FiT")
    fixed = BOTH | family
    known = {"hidden_size", "depth", "num_heads", *SIZES, *POSITIONS, *NOT_OF_THE_NETWORK, *fixed}
    for argument, value in kwargs.items():
        if argument not in known:
            raise ValueError(f"the argument {argument!r} is not known here")
        if argument in fixed and value != fixed[argument]:
            raise ValueError(f"{argument}={value!r} is not {name}, which has {argument}={fixed[argument]!r}")
    for argument in ("hidden_size", "depth", "num_heads"):
        if argument not in kwargs:
            raise ValueError(f"the argument {argument} is missing: the authors' configuration file has it")
    for argument in ("hidden_size", "depth", "num_heads", "patch_size", "in_channels", "num_classes"):
        value = kwargs.get(argument, 1)
        if not isinstance(value, int) or value < (argument != "num_classes"):
            raise ValueError(f"{argument}={value!r} is not a count; write the number itself")
    sizes = {ours: kwargs[theirs] for theirs, ours in SIZES.items() if theirs in kwargs}
    if not fitv2:
        sizes = {field: value for field, value in sizes.items() if field not in ("lora_rank", "qk_norm_affine")}
    rope = official_rope(**{name: kwargs[name] for name in POSITIONS if name in kwargs})
    fields = {"width": kwargs["hidden_size"], "depth": kwargs["depth"], "heads": kwargs["num_heads"], **sizes}
    return (FiTConfig if fitv2 else FiT1Config)(**fields, rope=rope)


SIZES = {
    "patch_size": "patch_size",
    "in_channels": "in_channels",
    "num_classes": "num_classes",
    "mlp_ratio": "mlp_ratio",
    "adaln_lora_dim": "lora_rank",
    "qk_norm_weight": "qk_norm_affine",
}
POSITIONS = ("rope_theta", "custom_freqs", "decouple", "ori_max_pe_len", "max_pe_len_h", "max_pe_len_w", "online_rope")


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
        raise ValueError(f"custom_freqs={custom_freqs!r} is not known here; known are {', '.join(CUSTOM_FREQS)}")
    method, attention = CUSTOM_FREQS[custom_freqs.lower()]
    if method == "none":
        return RopeScheme(theta=rope_theta, train_side=ori_max_pe_len or PLAIN.train_side)
    if ori_max_pe_len is None:
        raise ValueError(f"custom_freqs={custom_freqs!r} needs ori_max_pe_len, the patches per side of training")
    given = max_pe_len_h is not None and max_pe_len_w is not None
    if not (given or online_rope):
        raise ValueError(f"custom_freqs={custom_freqs!r} needs max_pe_len_h and max_pe_len_w, or online_rope")
    target = None if online_rope else (max_pe_len_h, max_pe_len_w)
    return RopeScheme(
        method=method,
        per_axis=decouple,
        attention=attention,
        train_side=ori_max_pe_len,
        theta=rope_theta,
        target=target,
    )


def read_official_config(path: Path) -> dict[str, Any]:
    """The network's constructor arguments in one of the authors' YAML files. Raises ValueError when it is none."""
    network = read_diffusion(path).get("network_config")
    params = network.get("params") if isinstance(network, dict) else None
    if not isinstance(params, dict):
        raise ValueError(f"{path} is not one of the authors' files: it has no diffusion.network_config.params")
    return params


def official_autoencoder(path: Path) -> str | None:
    """The autoencoder that such a file names."""
    return read_diffusion(path).get("pretrained_first_stage_model_path")


def read_diffusion(path: Path) -> dict[str, Any]:
    """The part `diffusion` of the file; what omegaconf would replace, such as ${tuple:0.9, 0.999}, is elsewhere."""
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    diffusion = content.get("diffusion") if isinstance(content, dict) else None
    return diffusion if isinstance(diffusion, dict) else {}


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint: one file, or the shards that an index.json (or a folder with one) names.

    Raises ValueError when it is missing or damaged, or when a pickle holds more than tensors and plain containers.
    """
    if path.is_dir():
        indices = sorted(path.glob("*.index.json"))
        if len(indices) != 1:
            raise ValueError(f"{path} holds {len(indices)} files *.index.json; name the checkpoint's own file")
        path = indices[0]
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if path.suffix == ".json":
        return read_shards(path)
    # By content: the authors' own loader knows pickles that are called .safetensors.
    state = read_pickle(path) if is_pickle(path) else read_safetensors(path)
    # DistributedDataParallel puts this in front of all names.
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    return state


def is_pickle(path: Path) -> bool:
    """Whether a file begins as torch's archives or bare pickles do; safetensors begin with a length."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", *(bytes((0x80, protocol)) for protocol in range(6)))


def read_shards(index: Path) -> dict[str, Tensor]:
    """All shards of an index as Hugging Face writes it."""
    try:
        names = json.loads(index.read_text())["weight_map"]
        shards = sorted(set(names.values()), key=str)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} {DAMAGED.format(repr(error))}") from None
    state: dict[str, Tensor] = {}
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or shard.endswith(".json"):
            raise ValueError(f"{index} names a shard that is no file of its own folder: {shard}")
        state |= read_state(index.parent / shard)
    if missing := sorted(names.keys() - state.keys()):
        raise ValueError(f"the shards of {index} lack {', '.join(missing)}")
    return state


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} {DAMAGED.format(error)}") from None


def read_pickle(path: Path) -> dict[str, Tensor]:
    """A pickled state dict, memory-mapped where its format allows. No code in it is ever run."""
    try:
        if path.suffix == ".safetensors":  # Given the name, torch would go by it.
            with path.open("rb") as file:
                state = torch.load(file, map_location="cpu", weights_only=True)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        unknown = re.search(r"Unsupported (?:global|class|operand)[^\n.]*", str(error))
        reason = unknown.group() if unknown else "its pickle does not follow the rules"
        raise ValueError(
            f"{path} is refused: it is damaged, or holds more than weights and could run code. Ask its maker for a "
            f".safetensors file ({reason})"
        ) from None
    except Exception as error:  # Of damaged pickles torch raises nearly any type, from KeyError to struct.error.
        raise ValueError(f"{path} {DAMAGED.format(repr(error).partition(chr(10))[0])}") from None
    for name in ("state_dict", "ema", "model"):  # Training scripts put the weights beside other things.
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{path} does not hold a state dict: names and tensors")
    return dict(state)

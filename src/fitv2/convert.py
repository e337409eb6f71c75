"""Checkpoints of the authors' code to ours and back. Our modules carry the authors' names, so the keys are theirs."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from .model.transformer import FiT, FiTConfig


def from_official(state: dict[str, Tensor] | str | Path, **kwargs) -> FiT:
    """A model with the authors' weights: a state dict or the path of a .safetensors file.

    kwargs: the authors' constructor arguments. Raises ValueError naming missing, extra or mis-shaped keys.
    """
    if not isinstance(state, dict):
        from safetensors.torch import load_file

        state = load_file(state)
    model = FiT(official_config(**kwargs))
    load_strictly(model, state)
    return model.eval()


def to_official(model: FiT) -> dict[str, Tensor]:
    """The weights under the authors' keys."""
    return model.state_dict()


def official_config(
    *,
    hidden_size: int,
    depth: int,
    num_heads: int,
    patch_size: int = 2,
    in_channels: int = 4,
    num_classes: int = 1000,
    mlp_ratio: float = 4.0,
    adaln_lora_dim: int | None = None,
    qk_norm_weight: bool = False,
    **fixed,
) -> FiTConfig:
    """The authors' constructor arguments as our configuration; raises ValueError for any other architecture."""
    expected = {
        "use_sit": True,
        "use_swiglu": True,
        "use_swiglu_large": False,
        "q_norm": "layernorm",
        "k_norm": "layernorm",
        "rel_pos_embed": "rope",
        "adaln_type": "lora",
        "learn_sigma": False,
    }
    for name, value in expected.items():
        if fixed.get(name, value) != value:
            raise ValueError(f"{name}={fixed[name]!r} is not FiTv2, which has {name}={value!r}")
    return FiTConfig(
        width=hidden_size,
        depth=depth,
        heads=num_heads,
        patch_size=patch_size,
        in_channels=in_channels,
        num_classes=num_classes,
        mlp_ratio=mlp_ratio,
        lora_rank=adaln_lora_dim,
        qk_norm_affine=qk_norm_weight,
    )


def load_strictly(model: FiT, state: dict[str, Tensor]) -> None:
    """Loads `state`, or raises ValueError listing every missing, extra and mis-shaped key."""
    own = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    problems = [f"missing {key}" for key in own.keys() - state.keys()]
    problems += [f"unexpected {key}" for key in state.keys() - own.keys()]
    problems += [
        f"{key} has shape {tuple(state[key].shape)}, the model needs {own[key]}"
        for key in own.keys() & state.keys()
        if tuple(state[key].shape) != own[key]
    ]
    if problems:
        raise ValueError("the weights do not fit the model: " + "; ".join(sorted(problems)))
    model.load_state_dict(state)

"""Checkpoints of the authors' code to ours and back. Our modules carry the authors' names, so the keys are theirs."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from .model.transformer import FiT, FiTConfig, load_strictly

FITV2 = {
    "use_sit": True,
    "use_swiglu": True,
    "use_swiglu_large": False,
    "q_norm": "layernorm",
    "k_norm": "layernorm",
    "rel_pos_embed": "rope",
    "abs_pos_embed": None,
    "adaln_type": "lora",
    "learn_sigma": False,
}
NOT_OF_THE_NETWORK = {"context_size", "class_dropout_prob", "use_checkpoint", "time_shifting"}


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
    **others,
) -> FiTConfig:
    """The authors' constructor arguments as our configuration.

    Raises ValueError for an argument that makes another network than FiTv2, or that is not known here.
    `time_shifting` is accepted and belongs to the sampler: see `fitv2.flow.path.shift_time`.
    """
    for name, value in others.items():
        if name in FITV2 and value != FITV2[name]:
            raise ValueError(f"{name}={value!r} is not FiTv2, which has {name}={FITV2[name]!r}")
        if name not in FITV2 and name not in NOT_OF_THE_NETWORK:
            raise ValueError(f"the argument {name!r} is not known here")
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

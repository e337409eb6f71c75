"""The kinds of network, and the published sizes (FiTv2, Table I), by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..messages import check_known
from .config import DiTConfig, FiTConfig, FiTv1Config, NetworkConfig, SiTConfig

ARCHITECTURES = {"FiTv2": FiTConfig, "FiT": FiTv1Config, "DiT": DiTConfig, "SiT": SiTConfig}
# The sizes of DiT and SiT, over images of 256x256 pixels.
GRIDS: dict[str, dict[str, Any]] = {
    "B/2": {"width": 768, "depth": 12, "heads": 12, "side": 16},
    "L/2": {"width": 1024, "depth": 24, "heads": 16, "side": 16},
    "XL/2": {"width": 1152, "depth": 28, "heads": 16, "side": 16},
}
PRESETS = {
    "FiTv2-B/2": FiTConfig(width=768, depth=15, heads=12),
    "FiTv2-L/2": FiTConfig(width=1024, depth=31, heads=16),
    "FiTv2-XL/2": FiTConfig(width=1152, depth=36, heads=16),
    "FiTv2-3B/2": FiTConfig(width=2304, depth=40, heads=24),
    "FiT-B/2": FiTv1Config(width=768, depth=12, heads=12),
    "FiT-XL/2": FiTv1Config(width=1152, depth=28, heads=16),
} | {f"{name}-{size}": ARCHITECTURES[name](**numbers) for name in ("DiT", "SiT") for size, numbers in GRIDS.items()}


def preset(name: str, **changes: Any) -> NetworkConfig:
    """Returns the named configuration, with any field changed. Raises UserError for an unknown name."""
    check_known("preset", name, PRESETS)
    return replace(PRESETS[name], **changes)


def config_of(architecture: str, **fields: Any) -> NetworkConfig:
    """Returns the configuration of an architecture; fields that are None take the architecture's default.

    Raises UserError for an unknown architecture, and as the configuration does.
    """
    check_known("architecture", architecture, ARCHITECTURES)
    return ARCHITECTURES[architecture](**{field: value for field, value in fields.items() if value is not None})


def architecture_of(config: NetworkConfig) -> str:
    """Returns the name of the kind of network."""
    return next(name for name, kind in ARCHITECTURES.items() if kind is type(config))

"""What older versions wrote into recipes, run folders and model folders, in today's words."""

from __future__ import annotations

from typing import Any

# Settings of the network that older versions wrote for every architecture, where null meant the architecture's own.
DEFAULTED = ("lora_rank", "qk_norm", "modulation", "prediction", "extrapolation")
# Settings that older versions wrote for DiT and SiT as well, with these values and without effect.
UNUSED_BY_GRIDS = {"mlp_ratio": 4.0, "qk_norm_affine": False}


def without_defaults(model: dict[str, Any]) -> dict[str, Any]:
    """Removes settings from a recipe's model section that older versions wrote and that have no effect."""
    unused = UNUSED_BY_GRIDS if model.get("architecture") in ("DiT", "SiT") else {}
    return {
        key: value
        for key, value in model.items()
        if not (value is None and key in DEFAULTED) and not (key in unused and value == unused[key])
    }

"""How much memory a command may still take."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def free_bytes(device: torch.device) -> int:
    """Memory that is free now: of the GPU, or of the machine where the device shares its memory."""
    import psutil
    import torch

    if device.type in ("cuda", "xpu"):
        return getattr(torch, device.type).mem_get_info(device)[0]
    return psutil.virtual_memory().available

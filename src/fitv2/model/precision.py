"""Half precision in a network: matrix products use it, and operations that need more run in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

HALF = (torch.bfloat16, torch.float16)


def autocast_in(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast in a half-precision dtype, unless a caller has already begun it; does nothing for other dtypes."""
    if dtype not in HALF or torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, dtype)

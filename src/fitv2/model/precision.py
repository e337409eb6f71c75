"""Half precision of a network: products in it, all that needs more in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

HALF = (torch.bfloat16, torch.float16)


def autocast_in(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[None]:
    """Autocast in a half-precision dtype, unless a caller has begun one; for other dtypes, nothing."""
    if dtype not in HALF or torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, dtype)

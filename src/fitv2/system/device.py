"""Where networks run: a device by its name, and the precision that suits it."""

from __future__ import annotations

import logging
import re

import torch

from ..errors import UserError
from ..messages import advised
from ..precision import Precision
from .limits import free_memory

logger = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NAME = re.compile(r"(cuda|mps|xpu|cpu)(?::(\d+))?")


def choose_device(name: str | None = None) -> torch.device:
    """Returns a device: cuda, mps, xpu or cpu, also with an index such as cuda:1; None: the best available.

    On CUDA this also allows TF32 in float32 products. Raises UserError for a device that this machine does not have.
    """
    there = device_counts()
    parts = NAME.fullmatch(next(iter(there)) if name is None else name)
    if parts is None:
        advice = f"choose from {' '.join(there)} (several GPUs: cuda:0, cuda:1, ...)"
        raise UserError(f"{name!r} is not a device{advised(str(name), there, advice)}")
    kind, index = parts.groups()
    if int(index or 0) >= there.get(kind, 0):
        known = ", ".join(kind if count == 1 else f"{kind}:0 to {kind}:{count - 1}" for kind, count in there.items())
        raise UserError(f"there is no device {name} here for the installed PyTorch; choose from {known}")
    if kind == "cuda":
        torch.set_float32_matmul_precision("high")
    return torch.device(kind) if index is None or kind in ("cpu", "mps") else torch.device(kind, int(index))


def device_counts() -> dict[str, int]:
    """Returns the number of devices of each kind that PyTorch can use, the fastest kind first."""
    counts = {"cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0}
    counts["xpu"] = torch.xpu.device_count() if torch.xpu.is_available() else 0
    counts["mps"] = int(torch.backends.mps.is_available())
    return {kind: count for kind, count in counts.items() if count} | {"cpu": 1}


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; without them, it is many times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Builds without oneDNN, such as some for ARM, do not have the operator that knows.
    return device.type != "cpu" or (
        torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def choose_precision(name: Precision | None, device: torch.device) -> Precision:
    """Returns the precision that is named; None: bf16 on CUDA devices that compute in it, else fp32.

    Warns if the device computes bfloat16 in software.
    """
    if name is None:
        return "bf16" if device.type == "cuda" and computes_bf16(device) else "fp32"
    if name == "bf16" and not computes_bf16(device):
        logger.warning("this processor computes bfloat16 in software, many times slower than float32: use fp32")
    return name


def free_bytes(device: torch.device) -> int:
    """Returns the memory that is free now on the GPU, or on the machine where the device shares its memory."""
    if device.type in ("cuda", "xpu"):
        return getattr(torch, device.type).mem_get_info(device)[0]
    import psutil

    return free_memory(psutil.virtual_memory().available)


def lack_of_memory(what: str, needed: float, device: torch.device) -> str | None:
    """Says that something needs more bytes than are free on the device; None if it fits."""
    free = free_bytes(device)
    if needed <= free:
        return None
    return f"{what} would need about {needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB are free"

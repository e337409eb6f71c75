"""Activation recomputation for cheap element-wise functions: only their inputs are saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")


def recomputed(function: Callable[..., Result], *inputs: Any) -> Result:
    """Returns function(*inputs) and saves only the inputs for the backward pass. It must draw no random numbers."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():  # The compiler weighs this by itself.
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, determinism_check="none")

"""Checks for NaN and infinity, wherever weights, latents and images enter or leave."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .errors import UserError

CURES = "try --precision fp32, a size nearer to those of training, or less guidance"


class NotFinite(UserError):
    """NaN or infinity instead of numbers: they would make a black image without an explanation."""


def is_finite(tensor: Tensor) -> bool:
    """Whether the tensor holds neither NaN nor infinity; in one pass, without a copy."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    return all(bool(end.isfinite()) for end in tensor.detach().aminmax())  # A NaN makes both ends NaN.


def check_finite(tensor: Tensor, what: str, advice: str = CURES, detail: str = "NaN or infinity") -> None:
    """Raises NotFinite if the tensor holds NaN or infinity; the message names `what` and gives the advice."""
    if not is_finite(tensor):
        raise NotFinite(f"{what} is not finite ({detail}); {advice}")


def check_weights(state: Mapping[str, Tensor], name: str) -> None:
    """Raises NotFinite for weights with NaN or infinity; the message names the first of them."""
    for key, tensor in state.items():
        if tensor.is_meta:  # Offloaded: its values are elsewhere.
            continue
        check_finite(tensor, f"the weight {key} of {name}", "copy, download or train it again")

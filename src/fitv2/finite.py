"""The check for numbers that are not finite, where weights, latents and images come in or go out."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .errors import UserError

CURES = "try --precision fp32, a size nearer to those of training, or less guidance"


class NotFinite(UserError):
    """NaN or infinity where numbers should be: as an image it would be black, and nobody would know why."""


def is_finite(tensor: Tensor) -> bool:
    """Whether it holds neither NaN nor infinity; in one pass and without a copy."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    return all(bool(end.isfinite()) for end in tensor.detach().aminmax())  # NaN is both ends then.


def check_finite(tensor: Tensor, what: str, advice: str = CURES) -> None:
    """Raises NotFinite, saying what it is and what to do about it."""
    if not is_finite(tensor):
        raise NotFinite(f"{what} is not finite (NaN or infinity); {advice}")


def check_weights(state: Mapping[str, Tensor], name: str) -> None:
    """Raises NotFinite for weights with NaN or infinity, naming the first of them."""
    for key, tensor in state.items():
        check_finite(tensor, f"the weight {key} of {name}", "copy, download or train it again")

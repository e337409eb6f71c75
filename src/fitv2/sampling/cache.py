"""Reuse of the inner blocks between the model calls of a sampling: what they add changes slowly from step to step."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

# With fewer blocks there are none between the first and the last.
SHALLOWEST_CACHED = 3


class BlockCache:
    """Lets one of every `every` model calls compute all blocks, and the others only the first and the last.

    On the other calls, the residual that the inner blocks added in the last full call is reused (the idea of DeepCache,
    arXiv 2312.00858, and Delta-DiT, arXiv 2406.01125). It belongs to one sampling of one batch of images.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._added: Tensor | None = None
        self._since = 0

    def __call__(self, x_TD: Tensor, inner: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns inner(x_TD), or x_TD plus the residual of an earlier call."""
        # Where guidance begins or ends, the number of images changes: such a call is a full one.
        if self._added is not None and self._added.shape == x_TD.shape and self._since < self.every - 1:
            self._since += 1
            return x_TD + self._added
        result = inner(x_TD)
        self._added, self._since = result - x_TD, 0
        return result

"""Skipping work between the steps of a sampling: what the inner blocks add changes slowly from step to step."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

# With fewer blocks there are none between the first and the last.
SHALLOWEST_CACHED = 3


class BlockCache:
    """Of every `every` forwards of the same images, one computes all blocks; the others only the first and the last.

    There, what the blocks between added in the last full forward is added once more (the idea of DeepCache, arXiv
    2312.00858, and Delta-DiT, arXiv 2406.01125). For one sampling of one set of images: make a new one for the next.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._added: Tensor | None = None
        self._since = 0

    def add(self, x_TD: Tensor, inner: Callable[[Tensor], Tensor]) -> Tensor:
        """inner(x_TD), or x_TD plus what inner added to it before.

        Where guidance begins or ends, images come with their second halves or without: such a forward is a full one.
        """
        if self._added is not None and self._added.shape == x_TD.shape and self._since < self.every - 1:
            self._since += 1
            return x_TD + self._added
        result = inner(x_TD)
        self._added, self._since = result - x_TD, 0
        return result

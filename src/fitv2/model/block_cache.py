"""Skipping work between the steps of a sampling: what the inner blocks add changes slowly from step to step."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class BlockCache:
    """Of every `every` forwards of the same images, one computes all blocks; the others only the first and the last.

    There, what the blocks between added in the last full forward is added once more (the idea of DeepCache, arXiv
    2312.00858, and Delta-DiT, arXiv 2406.01125). For one sampling of one set of images: make a new one for the next.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._added: dict[int, Tensor] = {}
        self._calls: dict[int, int] = {}

    def add(self, x_TD: Tensor, inner: Callable[[Tensor], Tensor]) -> Tensor:
        """inner(x_TD), or x_TD plus what inner added to it before.

        With and without the second half of guidance, images take turns: each has a memory of its own, by its tokens.
        """
        tokens = len(x_TD)
        call = self._calls.get(tokens, 0)
        self._calls[tokens] = call + 1
        if call % self.every == 0:
            result = inner(x_TD)
            self._added[tokens] = result - x_TD
            return result
        return x_TD + self._added[tokens]

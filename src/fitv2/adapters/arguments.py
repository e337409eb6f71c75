"""What callers of the pipeline may give in several forms, as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..randomness import PLAIN_SEEDS


def plain(values: Any) -> Any:
    """Tensors and arrays as lists of numbers."""
    return values.tolist() if hasattr(values, "tolist") else values


def is_size(size: Any) -> bool:
    """Whether it is (height, width) in whole pixels, either of them None for the model's own."""
    return isinstance(size, Sequence) and len(size) == 2 and all(isinstance(side, int | None) for side in size)


def flat(labels: int | str | Tensor | np.ndarray | Sequence) -> list[int | str]:
    """Labels of any nesting, or a tensor of them, as one list."""
    labels = plain(labels)
    if isinstance(labels, list | tuple):
        return [label for part in labels for label in flat(part)]
    return [labels]


def draw_seeds(count: int, generator: torch.Generator | Sequence[torch.Generator] | None) -> list[int]:
    """A seed per image below 2**32: from its own generator, or different ones from that for all (None: torch's own)."""
    if isinstance(generator, Sequence):
        return [draw_seeds(1, own)[0] for own in generator]
    device = generator.device if generator is not None else "cpu"
    seeds: dict[int, None] = {}
    while len(seeds) < count:
        drawn = torch.randint(PLAIN_SEEDS, (count - len(seeds),), generator=generator, device=device)
        seeds |= dict.fromkeys(drawn.tolist())
    return list(seeds)


def stacked(arrays: list) -> list | Tensor | np.ndarray:
    if len({tuple(array.shape) for array in arrays}) > 1:
        return arrays
    return torch.stack(arrays) if isinstance(arrays[0], Tensor) else np.stack(arrays)

"""Packs: which pictures share a batch, so that each batch nearly fills its token budget."""

from __future__ import annotations

import numpy as np

# Packs kept open at a time. More fill better, but mix pictures over a longer stretch of the shuffled order.
OPEN_PACKS = 8


def plan_packs(lengths: np.ndarray, budget: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Every picture of an epoch exactly once, in packs of at most `budget` tokens.

    lengths: (N,) tokens of each picture. Returns index arrays; a function of its arguments alone. The order is a
    shuffle; each picture goes to the fullest open pack that still has room (best fit). Raises ValueError when a
    picture is longer than the budget.
    """
    if lengths.max() > budget:
        raise ValueError(
            f"a picture of {lengths.max()} tokens does not fit a pack of {budget} tokens: raise "
            "training.tokens_per_pack, or lower data.max_tokens"
        )
    order = np.random.default_rng((seed, epoch)).permutation(len(lengths))
    shortest = int(lengths.min())
    packs: list[np.ndarray] = []
    open_packs: list[tuple[int, list[int]]] = []  # (room left, pictures), least room first
    for picture in order.tolist():
        length = int(lengths[picture])
        fitting = next((pack for pack in open_packs if pack[0] >= length), None)
        if fitting is None and len(open_packs) == OPEN_PACKS:
            packs.append(np.array(open_packs.pop(0)[1]))
        if fitting is None:
            fitting = (budget, [])
        else:
            open_packs.remove(fitting)
        fitting[1].append(picture)
        room = fitting[0] - length
        if room < shortest:
            packs.append(np.array(fitting[1]))
        else:
            open_packs.append((room, fitting[1]))
            open_packs.sort(key=lambda pack: pack[0])
    return packs + [np.array(pack) for _, pack in open_packs]


def real_share(lengths: np.ndarray, packs: list[np.ndarray], budget: int) -> float:
    """The share of the budget that holds real tokens."""
    return float(lengths.sum() / (len(packs) * budget))

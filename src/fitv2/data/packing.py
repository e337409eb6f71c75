"""Packs: which pictures share a batch, so that each batch nearly fills its token budget."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

from ..errors import UserError
from ..messages import counted
from ..randomness import Purpose, numpy_generator

# Packs kept open at a time. More fill better, but mix pictures over a longer stretch of the shuffled order.
OPEN_PACKS = 64


def plan_packs(lengths: np.ndarray, budget: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Every picture of an epoch exactly once, in packs of at most `budget` tokens.

    lengths: (N,) tokens of each picture. Returns index arrays; a function of its arguments alone. The order is a
    shuffle; each picture goes to the fullest open pack that still has room (best fit). Raises ValueError when a
    picture is longer than the budget.
    """
    if lengths.max() > budget:
        raise UserError(
            f"a picture of {counted(lengths.max(), 'token')} does not fit a pack of {counted(budget, 'token')}: raise "
            "training.max_tokens_per_batch, or lower data.max_tokens"
        )
    order = numpy_generator(Purpose.ORDER, seed, epoch).permutation(len(lengths))
    shortest = int(lengths.min())
    packs: list[list[int]] = []
    # Open packs in order of their room, the fullest first: two lists, because bisect is fast on plain numbers.
    rooms: list[int] = []
    open_packs: list[list[int]] = []
    for picture, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = bisect_left(rooms, length)
        if fitting < len(rooms):
            room, pack = rooms.pop(fitting), open_packs.pop(fitting)
        else:
            if len(rooms) == OPEN_PACKS:
                del rooms[0]
                packs.append(open_packs.pop(0))
            room, pack = budget, []
        room -= length
        pack.append(picture)
        if room < shortest:
            packs.append(pack)
        else:
            place = bisect_left(rooms, room)
            rooms.insert(place, room)
            open_packs.insert(place, pack)
    return [np.array(pack) for pack in packs + open_packs]


def real_share(lengths: np.ndarray, packs: list[np.ndarray], budget: int) -> float:
    """The share of the budget that holds real tokens."""
    return float(lengths.sum() / (len(packs) * budget))

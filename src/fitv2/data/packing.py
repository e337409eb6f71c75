"""Packs: which images share a batch, so that each batch nearly fills its token budget."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from heapq import heapreplace
from itertools import count, pairwise

import numpy as np

from ..errors import UserError
from ..messages import counted
from ..randomness import Purpose, numpy_generator

# Packs kept open at a time. More fill better, but mix images over a longer stretch of the shuffled order.
OPEN_PACKS = 64
# Packs that are filled evenly.
FEW = 64


def check_longest(length: int, budget: int) -> None:
    """Raises UserError if an image of `length` tokens is longer than the budget."""
    if length > budget:
        raise UserError(
            f"an image of {counted(length, 'token')} does not fit a pack of {counted(budget, 'token')}: raise "
            "training.max_tokens_per_batch, or lower data.max_tokens"
        )


def plan_packs(lengths: np.ndarray, budget: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Distributes every image of an epoch to packs of at most `budget` tokens: returns the indices of each pack.

    The order is a shuffle; each image goes to the fullest open pack that still has room (best fit). Where a few packs
    suffice, they are filled evenly instead: one that held what is left, perhaps two images, would count as much as the
    others. lengths: (N,) tokens of each image. Raises UserError if an image is longer than the budget.
    """
    check_longest(int(lengths.max()), budget)
    generator = numpy_generator(Purpose.ORDER, seed, epoch)
    order = generator.permutation(len(lengths))
    fewest = math.ceil(lengths.sum() / budget)
    if fewest <= FEW:
        even = next(filter(None, (even_packs(lengths, order, budget, number) for number in count(fewest))))
        return [even[place] for place in generator.permutation(len(even)).tolist()]
    shortest, opened = int(lengths.min()), 0
    pack_of: list[int] = []
    closed: list[int] = []
    # Open packs and their room, the fullest first. The loop runs a million times: bisect is fast on plain numbers.
    packs: list[int] = []
    rooms: list[int] = []
    for length in lengths[order].tolist():
        place = bisect_left(rooms, length)
        if place < len(rooms):
            room, pack = rooms.pop(place) - length, packs.pop(place)
        else:
            if len(rooms) == OPEN_PACKS:
                del rooms[0]
                closed.append(packs.pop(0))
            room, pack, opened = budget - length, opened, opened + 1
        pack_of.append(pack)
        if room < shortest:
            closed.append(pack)
        else:
            place = bisect_left(rooms, room)
            rooms.insert(place, room)
            packs.insert(place, pack)
    place_of = np.argsort(closed + packs)[pack_of]
    images, ends = order[np.argsort(place_of, kind="stable")], np.cumsum(np.bincount(place_of)).tolist()
    return [images[start:end] for start, end in pairwise([0, *ends])]


def even_packs(lengths: np.ndarray, order: np.ndarray, budget: int, number: int) -> list[np.ndarray] | None:
    """Distributes the images to so many packs, each to the emptiest; None if one overflows even the longest first."""
    for sequence in (order, order[np.argsort(-lengths[order], kind="stable")]):
        pack_of, fills = np.empty(len(lengths), np.int64), [(0, pack) for pack in range(number)]
        for image in sequence.tolist():
            filled, pack = fills[0]
            pack_of[image] = pack
            heapreplace(fills, (filled + int(lengths[image]), pack))
        if max(fills)[0] <= budget:
            return [images for pack in range(number) if len(images := order[pack_of[order] == pack])]
    return None


def packing_efficiency(lengths: np.ndarray, packs: Sequence[np.ndarray], budget: int) -> float:
    """Returns the fraction of the budget that holds real tokens."""
    return float(lengths.sum() / (len(packs) * budget))

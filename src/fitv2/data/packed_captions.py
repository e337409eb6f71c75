"""The captions of N images in three arrays: as objects, those of a million images would take long to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class PackedCaptions:
    """A sequence of N tuples of captions; of an image without captions, the empty one.

    Attributes:
        text: (bytes,) uint8, all captions in UTF-8, one after another.
        ends: (K + 1,) int64, 0 and where each caption ends, in bytes.
        counts: (N + 1,) int64, 0 and the number of captions of each image and all before it.
    """

    text: np.ndarray
    ends: np.ndarray
    counts: np.ndarray

    def __getitem__(self, image: int) -> tuple[str, ...]:
        first, last = self.counts[image : image + 2].tolist()
        ends = self.ends[first : last + 1].tolist()
        return tuple(str(self.text[a:b].tobytes(), "utf-8") for a, b in pairwise(ends))


def packed(captions: Sequence[Sequence[str]]) -> PackedCaptions | None:
    """Returns the captions of N images; None if no image has one."""
    texts = [caption.encode() for of_image in captions for caption in of_image]
    if not texts:
        return None
    ends, counts = (np.cumsum([0, *map(len, parts)], dtype=np.int64) for parts in (texts, captions))
    return PackedCaptions(np.frombuffer(b"".join(texts), np.uint8), ends, counts)

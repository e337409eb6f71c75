"""The captions of N images in three arrays: as objects, those of a million images would take long to read."""

from __future__ import annotations

from array import array
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


class CaptionPacker:
    """Makes `PackedCaptions`, image by image."""

    def __init__(self) -> None:
        self.text, self.ends, self.counts = bytearray(), array("q", [0]), array("q", [0])

    def add(self, captions: Sequence[str]) -> None:
        """Adds the captions of the next image."""
        for caption in captions:
            self.text += caption.encode()
            self.ends.append(len(self.text))
        self.counts.append(len(self.ends) - 1)

    def packed(self) -> PackedCaptions | None:
        """Returns the captions of all images; None if no image has one."""
        if len(self.ends) == 1:
            return None
        return PackedCaptions(np.frombuffer(bytes(self.text), np.uint8), np.array(self.ends), np.array(self.counts))

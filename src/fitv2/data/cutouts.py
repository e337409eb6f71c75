"""Cut-outs: pictures of single things whose surroundings are transparent, each trimmed to its thing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .folder import ImageFolder

# Every twentieth cut-out is held out, of a set that has enough of them.
HELD_OUT, FEWEST = 20, 640


@dataclass(frozen=True)
class Cutouts:
    """N cut-outs.

    Attributes:
        ids: N different names.
        names: What each shows, in words: "red apple".
        sizes: (N, 2) int64, height and width in pixels.
        labels: (N,) int64 in [0, len(class_names)), or all 0.
        class_names: May be empty.
        sets: (N,) int64, which set of drawings each is of; those on one canvas are of one set.
        styles: How the drawings of each set look, such as "flat"; may be empty texts.
        read: Returns a cut-out by its index, as RGBA. It may raise UnreadableImage, and is called in threads.
    """

    ids: Sequence[str]
    names: Sequence[str]
    sizes: np.ndarray
    labels: np.ndarray
    class_names: Sequence[str]
    sets: np.ndarray
    styles: Sequence[str]
    read: Callable[[int], Image.Image]

    def __len__(self) -> int:
        return len(self.ids)


def of_folder(folder: ImageFolder) -> Cutouts:
    """Returns the images of a folder in mode RGBA, named by their classes, or without classes by their files."""
    if folder.class_names:
        shown = [folder.class_names[int(label)] for label in folder.labels]
    else:
        shown = [path.rpartition("/")[2].rpartition(".")[0] for path in folder.paths]
    return Cutouts(
        ids=folder.paths,
        names=[name_of(text) for text in shown],
        sizes=folder.sizes,
        labels=folder.labels,
        class_names=folder.class_names,
        sets=np.zeros(len(folder), np.int64),
        styles=[""],
        read=folder.read,
    )


def name_of(text: str) -> str:
    """Returns the name in the name of a file or folder: "red apple" for "red_apple-02"."""
    words = re.sub(r"[\s_-]+", " ", text).strip()
    return re.sub(r" ?\d+$", "", words) or words


def every(text: str, number: int) -> bool:
    """Whether a text is among those, one in `number`, that its hash chooses: the same ones for ever."""
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogateescape")).digest()[:8]) % number == 0


def held_out(ids: Sequence[str]) -> np.ndarray:
    """Returns the indices of the cut-outs that are never trained on, int64: about a twentieth, or none of few."""
    chosen = [i for i, name in enumerate(ids) if every(name, HELD_OUT)] if len(ids) >= FEWEST else []
    return np.array(chosen, np.int64)

"""A data set of canvases: each epoch lays the same cut-outs out in other shapes and in other company."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from torch import Tensor

from ..errors import UserError
from ..messages import counted
from ..randomness import Purpose
from .canvas_layout import Scene, describe, draw_background, fill, lay_out, paint
from .cutouts import Cutouts, held_out
from .dataset import Dataset, Drawn
from .preprocessing import to_array, to_tensor, variant_sizes

# The fraction of the budget that a canvas at full scale has at least: few sizes have exactly all tokens.
FULL = 0.9
# In the name of what shows another thing when it is mirrored.
SIDED = re.compile(r"\b(left|right)", re.I)
# Tokens that each of several cut-outs has on the average, at least.
TOKENS_EACH = 4
# Pixels that the longer side of a canvas has for each cut-out, at least: with fewer, one might get none.
PIXELS_EACH = 2


class Canvases(Dataset):
    """One image per cut-out in each epoch: a third are the cut-out alone, filling its canvas, the others canvases.

    On a canvas of several, the others are drawn from the same set, and such an image is of no class: its label is
    `num_classes`. Held-out cut-outs are only among others that are held out.

    Args:
        max_tokens, patch: The budget, and the side of a token in pixels.
        aspect: Range of width / height of the canvases, drawn log-uniformly.
        objects: Range of the number of cut-outs on a canvas; None: no canvases, every cut-out fills its own.
        flip: Whether an epoch mirrors the cut-outs of half of the images, each in its place, unless their names say
            left or right.
        min_scale: Canvases have a log-uniform number of tokens, from about min_scale**2 * max_tokens to max_tokens; a
            cut-out that fills its own is scaled by a number from [min_scale, 1].

    Attributes:
        counts: How many cut-outs lie on a canvas of each variant; 0 where one fills it.

    Raises UserError if no canvas of these aspects is within the budget.
    """

    channels, captioned = 3, True
    drawn = ("variant", "flip", "scale")
    purpose = Purpose.CANVAS

    def __init__(
        self,
        cutouts: Cutouts,
        max_tokens: int,
        patch: int,
        aspect: tuple[float, float] = (0.25, 4.0),
        objects: tuple[int, int] | None = (1, 4),
        *,
        flip: bool = True,
        min_scale: float = 1.0,
    ) -> None:
        self.cutouts, self.max_tokens, self.patch_size = cutouts, max_tokens, patch
        self.flip, self.min_scale, self.labels = flip, min_scale, cutouts.labels
        self.class_names, self.num_classes = cutouts.class_names, len(cutouts.class_names)
        numbers = [] if objects is None else list(range(objects[0], objects[1] + 1))
        self.counts = np.array([0] * len(numbers) + numbers * 2 or [0])  # Variants are equally probable.
        self.possible = np.full(len(cutouts), len(self.counts))
        self.sizes_of = {number: canvas_sizes(max_tokens, patch, aspect, min_scale, number) for number in numbers}
        self.held_out = held_out(cutouts.ids)
        part = 2 * cutouts.sets + np.isin(np.arange(len(cutouts)), self.held_out)
        self.company = [np.flatnonzero(part == number) for number in range(part.max() + 1)]
        self.part = part

    def labelled(self, variant: np.ndarray) -> np.ndarray:
        return np.where(self.counts[variant] > 1, self.num_classes, self.labels)

    def sized(self, variant: np.ndarray, scale: np.ndarray) -> np.ndarray:
        scales, counts = 1 - (1 - self.min_scale) * scale, self.counts[variant]
        hw = variant_sizes(self.cutouts.sizes, self.max_tokens, self.patch_size, "resize", scales)[0][:, 0]
        hw = hw // self.patch_size
        for number, (sizes, cumulative) in self.sizes_of.items():
            chosen = counts == number
            hw[chosen] = sizes[np.searchsorted(cumulative[:-1], scale[chosen], side="right")]
        return hw

    @property
    def most_tokens(self) -> int:
        return self.max_tokens

    def scene(
        self, index: int, variant: int, hw: tuple[int, int], flip: bool, rng: Callable[[], np.random.Generator]
    ) -> Scene:
        """Returns what is on an image; the arguments as of `load`."""
        generator, count = rng(), int(self.counts[variant])
        size = hw[0] * self.patch_size, hw[1] * self.patch_size
        background, styled = draw_background(generator), bool(generator.random() < 0.5)
        chosen = [index]
        if count > 1:
            chosen = generator.permutation([index, *self.others(index, count - 1, generator)]).tolist()
        sizes = [tuple(self.cutouts.sizes[i].tolist()) for i in chosen]
        arrangement, boxes = lay_out(size, sizes, generator) if count else ("alone", [fill(size, sizes[0])])
        mirrored = flip and not any(SIDED.search(self.cutouts.names[i]) for i in chosen)
        return Scene(size, chosen, boxes, arrangement, background, mirrored, styled)

    def others(self, index: int, number: int, generator: np.random.Generator) -> list[int]:
        """Draws other cut-outs of the same set; they are different if there are enough of them."""
        company = self.company[self.part[index]]
        company = company[company != index] if len(company) > 1 else company
        return generator.choice(company, number, replace=number > len(company)).tolist()

    def load(self, index: int, *drawn: *Drawn) -> Tensor:
        return to_tensor(to_array(paint(self.scene(index, *drawn), self.cutouts.read)))

    def captions(self, index: int, *drawn: *Drawn) -> list[str]:
        scene = self.scene(index, *drawn)
        style = self.cutouts.styles[int(self.cutouts.sets[index])]
        return [describe(scene, [self.cutouts.names[i] for i in scene.cutouts], style)]

    def identity(self) -> tuple[list[str], list[np.ndarray], None]:
        return list(self.cutouts.ids), [self.labels, self.cutouts.sizes, self.first_hw], None


def canvas_sizes(
    max_tokens: int, patch: int, aspect: tuple[float, float], min_scale: float, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns all sizes of a canvas for this number of cut-outs, (S, 2) int64 in patches, and cumulative probabilities.

    Those are inverse to the number of tokens, which makes the logarithms of aspect and of tokens uniform.
    """
    fewest = min(max((FULL * min_scale) ** 2 * max_tokens, TOKENS_EACH * number), FULL**2 * max_tokens)
    sizes = [
        (rows, columns)
        for rows in range(1, max_tokens + 1)
        for columns in range(1, max_tokens // rows + 1)
        if aspect[0] * rows <= columns <= aspect[1] * rows and rows * columns >= fewest
        if patch * max(rows, columns) >= PIXELS_EACH * number
    ]
    if not sizes:
        raise UserError(
            f"no canvas for {counted(number, 'cut-out')} of an aspect from {aspect[0]:g} to {aspect[1]:g} has about "
            f"{max_tokens} tokens of {patch}x{patch} pixels: widen data.canvas.aspect, or raise data.max_tokens or the "
            "patch size"
        )
    probability = 1 / np.prod(sizes, 1)
    return np.array(sizes), probability.cumsum() / probability.sum()

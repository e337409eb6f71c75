"""Canvases of drawings as a source: some epochs of them, so that a model of latents can be trained on them."""

from __future__ import annotations

import io

import numpy as np

from ..data.canvases import Canvases
from ..data.cutouts import held_out
from ..data.emoji import cutouts, read_named
from ..data.labelling import Item
from ..images.sheets import to_image
from .items import Source


class CanvasSource(Source):
    """Drawings on canvases with their captions, as a training on pixels with seed 0 sees them in its first epochs.

    The drawings that are held out are in none, because nothing tells them from others once they are prepared.

    Args:
        name: emoji (the bundled drawings), or emoji:FOLDER.
        epochs: How many canvases are made around each drawing.
        max_tokens, side: Tokens of the largest canvas, and the side of a token in pixels.
        objects: The most drawings on a canvas.
        min_scale: As of `Canvases`.

    Raises UserError if there are no drawings, or no canvas has so few tokens.
    """

    def __init__(self, name: str, epochs: int, max_tokens: int, side: int, objects: int, min_scale: float) -> None:
        drawings = cutouts(read_named(name), "none")
        canvases = Canvases(drawings, max_tokens, side, objects=(1, objects), min_scale=min_scale)
        trained = np.delete(np.arange(len(drawings)), held_out(drawings.ids)).tolist()
        views = [canvases.epoch(number, seed=0) for number in range(epochs)]
        self.places = [(view, index) for view in views for index in trained]
        self.items = [Item(f"{number:04}/{drawings.ids[index]}.png") for number in range(epochs) for index in trained]
        self.class_names, self.notes = [], []

    def read(self, index: int) -> bytes:
        epoch, place = self.places[index]
        content = io.BytesIO()
        to_image(epoch.load(place)).save(content, "PNG", compress_level=1)
        return content.getvalue()

    def captions(self, index: int) -> tuple[str, ...]:
        epoch, place = self.places[index]
        return (epoch.caption(place),)

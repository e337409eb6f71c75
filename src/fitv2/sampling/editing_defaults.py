"""Defaults of sampling in two passes and of editing. Loads nothing heavy: the command line lists them in its help."""

from __future__ import annotations

from typing import Literal, get_args

# The time at which an enlarged image continues in the second of two passes.
UPSCALE_TIME = 0.7
# How much of an image changes where nothing says which parts are redrawn.
VARIATION = 0.6
# Where an image lies on a larger canvas.
Anchor = Literal["center", "left", "right", "top", "bottom"]
ANCHORS: tuple[Anchor, ...] = get_args(Anchor)

"""Ends a training that no longer learns because its data has vanished or its gradients are never finite."""

from __future__ import annotations

import logging
import math
from collections import deque

from ..errors import UserError

logger = logging.getLogger(__name__)
MOST_SKIPPED = 100
# A training stops when more than 5 % of its last images, those of at least 1 000, could not be read.
WINDOW, MOST_UNREADABLE = 1000, 0.05


class DataGone(UserError):
    """The data can no longer be read; the training up to here is intact."""


class Diverged(UserError):
    """Gradients are no longer finite."""


class GradientWatch:
    """Counts the steps that were skipped because their gradient was not finite, all of them and those in a row."""

    def __init__(self) -> None:
        self.skipped = self.in_a_row = 0

    def check(self, step: int, norm: float) -> None:
        """Takes the norm of a step's gradient. Raises Diverged after too many steps in a row without a finite one."""
        if math.isfinite(norm):
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        logger.warning("step %d: the gradient is not finite, the step is skipped", step)
        if self.in_a_row == MOST_SKIPPED:
            raise Diverged(
                f"{MOST_SKIPPED} steps in a row had no finite gradient: the training has diverged; continue from "
                "an earlier checkpoint with a lower training.learning_rate"
            )


class DataWatch:
    """Counts the images that could not be read, and ends training before too many are missing."""

    def __init__(self) -> None:
        self.skipped = 0
        self.recent: deque[tuple[int, int]] = deque()

    def check(self, readable: int, unreadable: int, gone: int) -> None:
        """Takes the counts of a step over all processes, before it is trained.

        gone: the number of processes that tried other images and found most of those unreadable too. Raises DataGone.
        """
        self.recent.append((readable, unreadable))
        # Keeps only the last steps that fill the window.
        while sum(map(sum, self.recent)) - sum(self.recent[0]) >= WINDOW:
            self.recent.popleft()
        lost, seen = sum(unreadable for _, unreadable in self.recent), sum(map(sum, self.recent))
        if gone or not readable or lost > MOST_UNREADABLE * max(seen, WINDOW):
            raise DataGone(f"{lost} of the last {seen} images could not be read")
        self.skipped += unreadable

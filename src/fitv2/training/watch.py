"""What ends a training that no longer learns: data that has vanished, and gradients that are never finite."""

from __future__ import annotations

import logging
import math
from collections import deque

from ..errors import UserError

logger = logging.getLogger(__name__)
MOST_SKIPPED = 100

# A training stops when more than 5 % of its last images could not be read: 50 of 1 000.
WINDOW, MOST_UNREADABLE = 1000, 50


class DataGone(UserError):
    """The data cannot be read any more; what was trained before is as it was."""

    def told(self, source: str, done: int, resume: str) -> DataGone:
        """The same with what to do. done: the last step, which is saved; resume: the command that continues."""
        reached = f"step {done} is saved" if done else "no step was trained yet"
        return DataGone(
            f"{self}: {source} has vanished or is damaged; {reached}. When the data is back, continue with: {resume}"
        )


class Diverged(UserError):
    """No gradient is finite any more."""


class GradientWatch:
    """Counts the steps that were skipped, because their gradient was not finite. skipped: their number so far."""

    def __init__(self) -> None:
        self.skipped = self.in_a_row = 0

    def check(self, step: int, norm: float) -> None:
        """norm: of the gradient of a step. Raises Diverged after many steps in a row without a finite one."""
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
    """Counts the images that could not be read, so that training stops before what it has learned is thrown away.

    skipped: their number so far.
    """

    def __init__(self) -> None:
        self.skipped = 0
        self.recent: deque[tuple[int, int]] = deque()

    def check(self, readable: int, unreadable: int, gone: int) -> None:
        """Of the images of a step over all processes, before it is trained.

        gone: the processes in which a look at other images found most of them unreadable too. Raises DataGone.
        """
        self.recent.append((readable, unreadable))
        # As few of the last steps as hold the window.
        while sum(map(sum, self.recent)) - sum(self.recent[0]) >= WINDOW:
            self.recent.popleft()
        lost = sum(unreadable for _, unreadable in self.recent)
        if gone or not readable:
            raise DataGone("the images cannot be read any more")
        if lost > MOST_UNREADABLE:
            seen = sum(map(sum, self.recent))
            raise DataGone(f"{lost} of the last {seen} images could not be read")
        self.skipped += unreadable

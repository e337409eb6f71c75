"""What the held-out loss of a run says at its end: to go on, to stop earlier, or neither."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..messages import command
from .holdout import LOSS

# Fewer measurements say nothing; changes of the loss by less than this fraction count as none.
FEWEST, CHANGE = 4, 0.01


def advice(figures: Sequence[dict[str, Any]], run: Path) -> str | None:
    """Returns a sentence about the run in a folder, from the lines of its log; None if it measured too seldom."""
    measured = [(line["step"], line[LOSS]) for line in figures if line.get(LOSS) is not None]
    if len(measured) < FEWEST:
        return None
    last_step, last = measured[-1]
    best_step, best = min(measured, key=lambda point: point[1])
    if last > (1 + CHANGE) * best:
        return (
            f"The held-out loss has risen by {100 * (last / best - 1):.1f} % since step {best_step}: the network "
            f"memorises its images. Train on more images, or only to step {best_step} "
            f"(log.export_at=[{best_step}] keeps the weights of that step)."
        )
    _, before = max((point for point in measured if point[0] <= 0.75 * last_step), default=measured[0])
    fall = 1 - last / before
    if fall > CHANGE:
        onwards = command("train", "--resume", "--out", run, "--set", f"training.steps={2 * last_step}")
        return f"The held-out loss still falls ({100 * fall:.1f} % over the last quarter): continue with {onwards}"
    return (
        f"The held-out loss has levelled off ({100 * fall:.1f} % over the last quarter); images can still get better "
        "for a while, which the sheets in samples/ show."
    )

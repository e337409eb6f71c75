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
    """Returns a sentence about the run in a folder, from the lines of its log; None if it measured too seldom.

    Where the learning rate falls at the end, the loss falls with it: what came before says whether to go on.
    """
    measured = measurements(figures)
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
    peak = max(line.get("learning_rate", 0.0) for line in figures)
    at_peak = measurements([line for line in figures if line.get("learning_rate", 0.0) >= peak])
    points = at_peak if len(at_peak) >= FEWEST else measured
    _, before = max((point for point in points if point[0] <= 0.75 * points[-1][0]), default=points[0])
    fall = 1 - points[-1][1] / before
    if fall > CHANGE:
        onwards = command("train", "--resume", "--out", run, "--set", f"training.steps={2 * last_step}")
        decayed = points[-1] != measured[-1]
        when = "before the learning rate fell" if decayed else "over the last quarter"
        again = ", which raises the learning rate again" if decayed else ""
        return f"The held-out loss still falls ({100 * fall:.1f} % {when}): continue with {onwards}{again}"
    return (
        f"The held-out loss has levelled off ({100 * fall:.1f} % over the last quarter); images can still get better "
        "for a while, which the sheets in samples/ show."
    )


def measurements(figures: Sequence[dict[str, Any]]) -> list[tuple[int, float]]:
    """Returns the (step, held-out loss) of the lines that have one."""
    return [(line["step"], line[LOSS]) for line in figures if line.get(LOSS) is not None]

"""The learning rate over a training."""

from __future__ import annotations

from ..config import TrainingSettings


def learning_rate(step: int, training: TrainingSettings) -> float:
    """Linear warm-up, constant, then linear decay to zero over the last `decay_fraction`; step counts from 0."""
    rise = min(1.0, (step + 1) / training.warmup_steps) if training.warmup_steps else 1.0
    decay = training.steps * training.decay_fraction
    fall = min(1.0, (training.steps - step) / decay) if decay else 1.0
    return training.learning_rate * rise * fall

"""The model that teaches transitions: the one that training starts from, sampled as it recommends."""

from __future__ import annotations

import json
import logging

import torch
from torch import Tensor

from ..build import build_base
from ..checkpoints.model_folder import Pretrained
from ..checkpoints.state_dict import weights_digest
from ..sampling.guidance import GuidedModel
from ..settings.recipe import TrainingSettings
from ..tokens import TokenBatch

logger = logging.getLogger(__name__)
# The settings of `Sampling` on which its velocity depends.
TEACHING = ("guidance", "interval", "power", "channels", "internal_guidance", "internal_interval")


class GuidedTeacher:
    """The guided velocity of a pretrained model; bf16: whether it computes under autocast."""

    def __init__(self, base: Pretrained, device: torch.device, bf16: bool) -> None:
        self.model, self.sampling = base.model.to(device), base.sampling()
        self.device, self.bf16 = device, bf16

    def __call__(
        self, batch: TokenBatch, t_B: Tensor, labels_B: Tensor, context: TokenBatch | None, no_text: TokenBatch | None
    ) -> Tensor:
        """Returns (T, C); context: of each image; no_text: of no caption, by which it is guided."""
        no_texts = no_text and no_text.select([0] * len(batch))
        model, config = self.model, self.model.config
        guided = GuidedModel(model, config, batch.hw, labels_B, self.sampling, self.device, context, no_texts)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return guided(batch.x, t_B)

    def digest(self) -> str:
        """Returns 16 hexadecimal digits of its weights and of how it is guided."""
        about = json.dumps([getattr(self.sampling, name) for name in TEACHING])
        return weights_digest(self.model.state_dict(), about)[:16]


def load_teacher(training: TrainingSettings, device: torch.device) -> GuidedTeacher | None:
    """Loads the model that `init_from` names if training is of transitions. Raises UserError as `build_base` does."""
    base = build_base(training) if training.objective == "transition" else None
    if base is None:
        return None
    teacher = GuidedTeacher(base, device, training.precision == "bf16")
    (low, high), sampling = teacher.sampling.interval, teacher.sampling
    logger.info(
        "transitions are taught by %s with guidance %g from time %g to %g and internal guidance %g; its sampling.json "
        "decides on them",
        *(training.init_from, sampling.guidance, low, high, sampling.internal_guidance),
    )
    return teacher

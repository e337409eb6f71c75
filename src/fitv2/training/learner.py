"""A network with everything that learning changes: gradients of packs, steps of the optimiser, averaged weights."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..build import build_objective
from ..checkpoints.training_state import restore
from ..data.loader import Pack
from ..distributed.parallel import ParallelModel, whole
from ..distributed.ranks import Ranks
from ..errors import UserError
from ..model.network import Network, load_strictly
from ..model.transformer import FiT
from ..settings.autoencoder import AutoencoderTrainingSettings
from ..settings.recipe import ScheduleSettings, TrainingSettings
from ..system.device import DTYPES
from ..text import PromptEncoder
from .ema import EMA
from .optimizer import Optimizer
from .teacher import load_teacher

logger = logging.getLogger(__name__)


class BaseLearner:
    """A network of any kind in training: its optimiser, its averaged weights, and both in checkpoints."""

    def __init__(
        self, network: nn.Module, settings: TrainingSettings | AutoencoderTrainingSettings, optimizer: Optimizer
    ) -> None:
        self.network, self.settings, self.optimizer = network, settings, optimizer
        self.ema = EMA(network, settings.ema_decay)

    def update(self, step: int) -> Tensor:
        """Updates weights and averages in step `step`, counted from 0; returns the gradient's norm, () float32.

        A gradient that is not finite changes nothing.
        """
        norm = whole(nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.max_grad_norm))
        finite = norm.isfinite()
        self.optimizer.step(learning_rate(step, self.settings), finite)
        self.ema.update(self.network, step, finite)
        return norm

    def averaged(self) -> AbstractContextManager[None]:
        """Gives the network its averaged weights for a with block."""
        return self.ema.applied_to(self.network)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The network's parameters by name."""
        return dict(self.network.named_parameters())

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of a checkpoint: "model", "ema" and "optimizer"."""
        return {"model": self.parameters, "ema": self.ema.average, "optimizer": self.optimizer.tensors()}

    def restore(self, checkpoint: Path) -> None:
        """Restores the tensors from a checkpoint. Raises UserError where they are damaged or do not fit."""
        loads = {"model": partial(load_strictly, self.network), "ema": self.ema.load, "optimizer": self.optimizer.load}
        for part, load in loads.items():
            restore(checkpoint, part, self.parameters, load)


class Learner(BaseLearner):
    """A network in training, with an optimiser of the `trained` parameters (others are frozen) and averaged weights.

    text: The text encoder, for a network that is conditioned on captions.
    """

    settings: TrainingSettings

    def __init__(
        self,
        network: Network,
        trained: list[str],
        settings: TrainingSettings,
        ranks: Ranks,
        text: PromptEncoder | None = None,
    ) -> None:
        self.trained = trained
        dtype = DTYPES[settings.precision]
        self.text = text and text.to(ranks.device, dtype)
        chosen = set(trained)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in chosen)
        network.activation_checkpointing = settings.activation_checkpointing
        self.model = ParallelModel(network, ranks, settings.sharding, settings.precision)
        own = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        muon, rate = settings.optimizer == "muon", settings.learning_rate
        optimizer = Optimizer(own, rate, settings.beta2, settings.weight_decay, muon, dtype)
        super().__init__(network, settings, optimizer)
        self.teacher = load_teacher(settings, ranks.device)
        self.objective = build_objective(settings, network.config, self.teacher)

    def compile(self) -> None:
        """Compiles the blocks if the settings say so and the machine can."""
        module = self.model.module
        if self.settings.compile and isinstance(module, FiT):
            # Halves of blocks are graphs of their own: none is worth cutting where DDP cuts gradients.
            torch._dynamo.config.optimize_ddp = False
            try:
                module.compile_blocks(self.settings.max_tokens_per_batch)
            except UserError as error:
                logger.warning("%s: training continues without training.compile", error)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Gives the network its averaged weights for a with block, in which it is not compiled."""
        # Other images have other shapes than training steps, and would use up the limit on compiled graphs.
        eager = torch.compiler.set_stance("force_eager") if self.settings.compile else nullcontext()
        with eager, super().averaged():
            yield

    def backward(
        self,
        packs: Sequence[Pack],
        weights: Iterable[float],
        generators: Iterable[torch.Generator],
    ) -> Tensor:
        """Accumulates the gradient of the weighted sum of the packs' losses; returns the sum reported, () float32.

        Args:
            packs: On any device; their labels on the CPU.
            weights: The weight of each pack's loss, the mean over its images.
            generators: For each pack, the source of its times, noise and dropped labels and captions.
        """
        device, null_label = self.model.ranks.device, self.model.module.config.null_label
        total = torch.zeros((), device=device)
        for number, (pack, weight, generator) in enumerate(zip(packs, weights, generators, strict=True), 1):
            batch, labels = pack.batch.to(device), pack.labels
            # The last is for images that lose theirs.
            context = self.text and self.text.pack([*pack.captions, ""])
            # The model runs under autocast by itself; the loss stays outside.
            with nullcontext() if number == len(packs) else self.model.accumulating():
                result = self.objective(self.model, batch, labels, null_label, generator, context=context)
                (result.loss * weight).backward()
            total += result.reported * weight
        return total


def learning_rate(step: int, settings: ScheduleSettings) -> float:
    """Returns the learning rate of a step, counted from 0: linear warm-up, constant, then linear decay to zero."""
    rise = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    decay = settings.steps * settings.decay_fraction
    fall = min(1.0, (settings.steps - step) / decay) if decay else 1.0
    return settings.learning_rate * rise * fall

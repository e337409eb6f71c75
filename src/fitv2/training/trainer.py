"""The training loop: one packed step after another, logged, checkpointed, resumable (on a CPU bit for bit).

After the start no global random state is used: the order of the data follows from (seed, epoch), and the times, noise
and dropped labels of a pack from (seed, step, pack). Resuming therefore restores tensors, the step and the position in
the data, and no generator.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..build import build_loss_at, build_text_encoder, build_times, sampling_advice
from ..checkpoints.model_folder import Pretrained, copy_recommended, keep_recommended, save_pretrained, suitable
from ..checkpoints.training_state import newest_state
from ..data.dataset import Dataset
from ..data.loader import PackLoader, StepData
from ..distributed.ranks import Ranks, join_processes, on_rank0
from ..errors import UserError, lack_of_memory_told
from ..model.config import FiTConfig, NetworkConfig
from ..model.network import build_network
from ..randomness import Purpose, seed_of, torch_generator
from ..settings.recipe import Recipe
from .finetune import init_from, trained_names
from .holdout import Holdout
from .learner import Learner
from .loop import TrainingLoop
from .run_folder import check_data, check_held_out, check_teacher, facts, held_out_digest, identity
from .sheets import sheet_requests, sheet_sampling, write_sheet

logger = logging.getLogger(__name__)
# Returns figures of the model in a folder.
Distance = Callable[[Path], dict[str, float]]


class Trainer(TrainingLoop[Recipe]):
    """A run in a folder: recipe.json, log.jsonl, checkpoints/, samples/ and model/.

    Training continues from the newest checkpoint in the folder, if there is one; else it starts from the weights of
    `base`, if given; else from scratch.

    Args:
        ranks: The processes that train together; default: those of the launcher.
        distance: Gets the model folder every `log.distance_every` steps, on rank 0, and returns figures of it.

    Raises:
        UserError: The checkpoint is damaged, or belongs to other classes or other data.
    """

    command, exports = "train", "model"
    learner: Learner

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        config: NetworkConfig,
        run: Path,
        base: Pretrained | None = None,
        ranks: Ranks | None = None,
        distance: Distance | None = None,
    ) -> None:
        super().__init__(recipe, run, join_processes() if ranks is None else ranks)
        self.dataset, self.distance = dataset, distance
        recipe, settings = self.recipe, self.recipe.training
        self.facts = facts(dataset, recipe.model.encoder)
        self.identity = identity(dataset, self.facts["examples"])
        self.sources, self.content = recipe.data.source, self.identity["content"]
        self.sheet_every = recipe.log.sample_every
        self.begun = on_rank0(self._find_checkpoint)
        self.recommended: Mapping[str, Any] = sampling_advice(settings)
        text = build_text_encoder(recipe.model, dataset)
        torch.manual_seed(seed_of(Purpose.WEIGHTS, settings.seed))
        network = build_network(config)
        # Decided once per run: a checkpoint records which parameters are trained.
        trained = [name for name, _ in network.named_parameters()]
        if self.begun is not None:
            kept = self.begun[1]["trained"]
            trained = trained if kept == "all" else kept
        elif base is not None:
            start = init_from(network, base, dataset, settings)
            for note in start.notes:
                logger.info("%s: %s", settings.init_from, note)
            trained = trained_names(trained, settings.trainable, start.reinitialised)
            advice = sampling_advice(settings, base.recommended)
            self.recommended = suitable(advice, config, str(settings.init_from)) or self.recommended
        self.learner = Learner(network, trained, settings, self.ranks, text)
        self.sharded = self.learner.model.sharded
        self.teacher = self.learner.teacher and self.learner.teacher.digest()
        if self.begun is not None:
            check_teacher(run, recipe, self.begun[1], self.teacher)
        self.holdout = Holdout(dataset, settings, build_loss_at(config), build_times(settings, config), text)
        self.held_out = held_out_digest(self.holdout.chosen)
        if self.begun is not None and self.ranks.is_main_process:
            check_held_out(self.begun[1], self.held_out)
        self.loader = PackLoader(
            dataset,
            settings.max_tokens_per_batch,
            settings.batches_per_step,
            settings.seed,
            *(self.ranks.process_index, self.ranks.num_processes, settings.workers),
            pin=self.ranks.device.type == "cuda",
            held_out=self.holdout.chosen,
            captioned=text is not None,
        )

    def _find_checkpoint(self) -> tuple[Path, dict[str, Any]] | None:
        begun = newest_state(self.run / "checkpoints")
        if begun is not None:
            check_data(self.run, self.recipe, self.identity, begun[1])
        return begun

    def begin(self) -> None:
        self.learner.compile()
        if self.ranks.is_main_process:
            keep_recommended(self.run / "model", self.recommended)

    def measure(self) -> dict[str, float]:
        """Returns the held-out losses and the distance, if they are due."""
        progress, log = self.progress, self.recipe.log
        figures: dict[str, float] = {}
        if progress.is_due(log.holdout_every):
            figures |= self.holdout.measure(self.learner.model, self.learner.averaged())
        if self.distance is not None and progress.is_due(log.distance_every) and not progress.stopping:
            figures |= self.measured(self.distance)
        return figures

    def measured(self, distance: Distance) -> dict[str, float]:
        """Returns the distance of the averaged weights; none, with a warning, if it cannot be measured."""
        model = self.run / "model"
        with self.progress.saving():
            self.export(model)
        try:
            return on_rank0(lack_of_memory_told()(partial(distance, model)))
        except (UserError, OSError) as error:  # Training continues: its checkpoints do not depend on distances.
            logger.warning("no distance at step %d: %s", self.progress.done, error)
            return {}

    def backward(self, step: StepData, images: int) -> dict[str, Tensor]:
        """Weights each pack's mean loss by its fraction of the readable images.

        So packs and processes of unequal numbers of images add up to the gradient of one big batch.
        """
        weights = [readable / images * self.ranks.num_processes for readable in step.readable]
        generators = (self.pack_generator(number) for number in range(len(step.packs)))
        return {"loss": self.learner.backward(step.packs, weights, generators)}

    def pack_generator(self, number: int) -> torch.Generator:
        """Returns the generator of a pack of this process; it does not depend on the number of processes."""
        pack = number * self.loader.world + self.loader.rank
        return torch_generator(Purpose.TRAINING, self.recipe.training.seed, self.progress.done, pack)

    def state(self) -> dict[str, Any]:
        """Returns the facts about data and network that a resumed run is compared with."""
        learner, config = self.learner, self.learner.model.module.config
        known = {"trained": learner.trained if len(learner.trained) < len(learner.parameters) else "all"}
        rope = asdict(config.rope) if isinstance(config, FiTConfig) else None
        return self.identity | known | {"teacher": self.teacher, "rope": rope, "held_out": self.held_out}

    def export(self, folder: Path) -> None:
        """Writes the averaged weights as a model folder; rank 0 gathers them, tensor by tensor."""
        model = self.learner.model
        weights = model.gather(self.learner.ema.average)
        about = self.facts | {"dtype": torch.float32, "step": self.progress.done}
        on_rank0(lambda: copy_recommended(self.run / "model", folder))
        on_rank0(lambda: save_pretrained(folder, model.module.config, weights, **about))

    def write_sheet(self) -> None:
        """Draws a sample sheet with the averaged weights, in the precision of training."""
        learner, config = self.learner, self.learner.model.module.config
        wanted = sheet_requests(self.facts, config.null_label), sheet_sampling(self.recipe, config)
        with self.learner.averaged():
            write_sheet(self.progress.sheet, learner.model, self.dataset, *wanted, learner.text)

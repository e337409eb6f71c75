"""How far the images of a model in training are from real ones, as `fitv2 evaluate` measures it, with few images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ..autoencoder import load_autoencoder
from ..checkpoints.model_folder import load_pretrained
from ..distributed.ranks import Ranks
from ..text import load_text_encoder
from .evaluate import Evaluation, cache_folder
from .extractors import load_extractor
from .generated import Maker, SizeSpec, make_samples
from .inputs import default_extractor, open_reference

METRICS = ("fd", "kid", "accuracy")


class TrainingDistance:
    """Makes images with a model folder and compares them with real ones.

    Args:
        reference: Real images, as for `fitv2 evaluate`.
        number: The number of images to make, with the same seeds each time.
        device: Where the model runs.

    Raises:
        UserError: There is no such reference, or the packages of its extractor are missing.
    """

    def __init__(self, reference: str, number: int, device: torch.device) -> None:
        self.number, self.device = number, device
        self.evaluation = Evaluation(
            reference=open_reference(reference, cache_folder()),
            extractor=load_extractor(default_extractor(reference, None), str(device)),
            metrics=METRICS,
            protocol=None,
            cache=cache_folder(),
            kept=Path(),
            progress=silent,
        )
        self.evaluation.protocol_for(None)

    def __call__(self, model: Path) -> dict[str, float]:
        """Returns fd, kid and, where classes are recognised, accuracy of the model in a folder.

        Sizes are those of training, and settings of sampling those that the model recommends.
        """
        pretrained = load_pretrained(model)
        pretrained.model.to(self.device)
        text = pretrained.text_encoder and load_text_encoder(pretrained.text_encoder).to(self.device)
        maker = Maker(
            name=str(model),
            pretrained=pretrained,
            codec=load_autoencoder(pretrained.autoencoder, str(self.device)),
            text=text or None,
            precision="float32",
            seed=0,
            samplings=[pretrained.sampling()],
        )
        alone = Ranks(0, 1, self.device)
        with TemporaryDirectory() as folder:
            samples = make_samples(maker, [SizeSpec()], self.number, Path(folder), alone, silent, lambda *told: None)
            scores = replace(self.evaluation, kept=Path(folder) / "features").score(samples[0]).scores
        return {name: scores[name] for name in METRICS if scores.get(name) is not None}


@contextmanager
def silent(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress that shows nothing."""
    yield lambda count: None

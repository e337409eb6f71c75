"""How far the images of a model in training are from real ones, as `fitv2 evaluate` measures it, with few images."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from ..checkpoints.model_folder import load_pretrained
from ..images.autoencoder import load_autoencoder
from ..images.make_images import make_images
from ..text import load_text_encoder
from .evaluate import Evaluation, cache_folder
from .extractors import load_extractor
from .generated import SizeSpec, balanced_specs
from .image_sets import ArrayImages
from .inputs import Samples, default_extractor, open_reference
from .results import LABELS

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
            kept=None,
            progress=lambda title, total: nullcontext(lambda count: None),
        )
        self.evaluation.protocol_for(None)

    def __call__(self, model: Path) -> dict[str, float]:
        """Returns fd, kid and, where classes are recognised, accuracy of the model in a folder.

        Sizes are those of training, and settings of sampling those that the model recommends. Only this process works:
        the others of a training wait. Raises UserError if the model makes nothing that can be compared.
        """
        pretrained = load_pretrained(model)
        network = pretrained.model.to(self.device)
        text = pretrained.text_encoder and load_text_encoder(pretrained.text_encoder).to(self.device)
        codec = load_autoencoder(pretrained.autoencoder, str(self.device))
        specs = balanced_specs(pretrained, self.number, SizeSpec(), 0, codec.factor)
        images = make_images(network, codec, specs, pretrained.sampling(), text=text or None)
        names = pretrained.class_names
        labels = np.array([spec.label if names else 0 for spec in specs], dtype=np.int64)
        made = ArrayImages("images of the training", list(map(np.asarray, images)), labels, names)
        samples = Samples(made, np.arange(self.number), None, "own", {LABELS: None, "seeds": None})
        scores = self.evaluation.score(samples).scores
        return {name: scores[name] for name in METRICS if scores.get(name) is not None}

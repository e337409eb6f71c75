"""How good the models of a run are: how far their pictures are from real ones, and how many are what they should be.

What is scored is what people would see: 8-bit pictures, in the sizes of the real ones or in a given one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..autoencoder import KLAutoencoder, Pixels, load_autoencoder, read_factor
from ..checkpoints.model_folder import Pretrained, load_pretrained
from ..data.dataset import Dataset
from ..device import choose_device
from ..errors import UserError
from ..evaluation.features import by_class
from ..evaluation.frechet import frechet_distance
from ..evaluation.kid import kernel_distance
from ..evaluation.neighbours import compare_neighbours
from ..evaluation.suite import ImageSet
from ..evaluation.summary import Summary, kept_summary, summarise
from ..evaluation.wishes import SizeWish, balanced_wishes
from ..finite import NotFinite
from ..generate import check_divisible, generate
from ..hashes import json_digest
from ..model.config import NetworkConfig
from ..sheets import save_sheet, to_image
from ..training.samples import draw_sheet
from .conditions import Condition
from .job import Job
from .record import Scores
from .snapshots import Tell
from .views import load_views, possible

# Of a curve's points; the end has more.
CURVE_SCORES = ("distance", "recognised")
SCORES = (*CURVE_SCORES, "kid", "precision", "recall", "density", "coverage")


@dataclass
class Snapshot:
    """A model of a run, loaded when it is first needed, and once."""

    path: Path

    @cached_property
    def pretrained(self) -> Pretrained:
        pretrained = load_pretrained(self.path)
        pretrained.model.to(choose_device())
        return pretrained


class Scorer:
    """Scores the snapshots of a run; what is seen in the pictures of each is a file in the run's folder, made once.

    Raises ValueError where the data are no pictures, or pictures are asked for that the models cannot make: before
    anything is trained.
    """

    def __init__(self, job: Job, dataset: Dataset, config: NetworkConfig, tell: Tell) -> None:
        self.job, self.dataset, self.config, self.tell = job, dataset, config, tell
        self.factor = read_factor(dataset.autoencoder)
        self.views = load_views(job.study, self.factor, job.references)
        self.final = possible(job.study.evaluation, config, self.views)
        for view in self.views.values():
            if view.dataset.class_names not in ([], list(dataset.class_names)):
                raise UserError(f"the view {view.name} has other classes than the training: labels would not agree")
        for condition in self.final:
            for size in self.views[condition.view].sizes(condition):
                check_divisible(size, config.patch_size * self.factor)
        self.done = self.total = 0

    def all(self, models: dict[int, Path]) -> tuple[dict[int, Scores], dict[str, Scores]]:
        """Of each step's point, and of the end by condition (only those that the model can make; none if diverged)."""
        evaluation, last = self.job.study.evaluation, self.job.run.recipe.training.steps
        final = self.final if last in models else []
        self.total = len(models) * evaluation.images + len(final) * evaluation.final_images
        points, end = {}, {}
        for step, path in models.items():
            snapshot = Snapshot(path)
            points[step] = curve_scores(*self.compared(snapshot, evaluation.point, evaluation.images))
            if step == last:
                for c in final:
                    end[c.name] = final_scores(*self.compared(snapshot, c, evaluation.final_images))
                if self.job.run.seed == 0:
                    self.draw(snapshot)
        return points, end

    def compared(
        self, snapshot: Snapshot, condition: Condition, images: int
    ) -> tuple[Summary | None, Summary, Tensor | None]:
        """What is seen in a model's pictures (None: not finite) and in real ones, and see `View.classes`."""
        view = self.views[condition.view]
        return self.seen(snapshot, condition, images), view.seen(condition.pixels), view.classes

    def seen(self, snapshot: Snapshot, condition: Condition, images: int) -> Summary | None:
        """The pictures themselves are not kept: what is seen in them gives every score."""
        sight, sampling = self.job.sight, self.job.study.evaluation.sampling(condition, self.config)
        about = sight | {"data": sight["data"][condition.view], "size": condition.size, "images": images}
        key = json_digest(about | {"sampling": asdict(sampling)})
        before = self.done
        try:
            summary = kept_summary(
                self.job.folder / "seen" / snapshot.path.name,
                self.views[condition.view].extractor,
                [key],
                lambda: self.look(snapshot, condition, images),
            )
        except NotFinite:
            return None
        if self.done == before:  # It was there.
            self.finished(images)
        return summary

    def look(self, snapshot: Snapshot, condition: Condition, images: int) -> Summary:
        """Makes the pictures and looks at them. Raises NotFinite."""
        view, sampling = self.views[condition.view], self.job.study.evaluation.sampling(condition, self.config)
        as_the_view = replace(snapshot.pretrained, shapes=view.shapes)
        wishes = balanced_wishes(as_the_view, images, SizeWish(condition.pixels), self.job.run.seed, self.factor)
        with self.precision():
            latents = generate(snapshot.pretrained.model, wishes, sampling, lambda *_: self.finished(1))
        pictures = (to_image(self.codec.decode(latent)).convert(view.extractor.mode) for latent in latents)
        labels = np.array([wish.label for wish in wishes], dtype=np.int64)
        return summarise(view.extractor, pictures, labels, lambda _: None)

    def draw(self, snapshot: Snapshot) -> None:
        """A sheet of pictures in the shapes of the last view that the model can make, guided as the points are."""
        evaluation, pretrained = self.job.study.evaluation, snapshot.pretrained
        view = self.views[[c for c in self.final if c in evaluation.by_view][-1].view]
        sampling = evaluation.sampling(evaluation.point, self.config)
        try:
            with self.precision():
                page = draw_sheet(pretrained.model, pretrained.class_names, view.shapes, sampling, self.codec)
        except NotFinite:  # A model that diverged has scores that say so, and no images.
            return
        save_sheet(page, self.job.sheet)

    @cached_property
    def codec(self) -> Pixels | KLAutoencoder:
        """What makes pictures of the models' latents."""
        return load_autoencoder(self.dataset.autoencoder, choose_device())

    def precision(self) -> torch.autocast:
        """That of the training."""
        return torch.autocast(
            choose_device().type, torch.bfloat16, enabled=self.job.run.recipe.training.precision == "bf16"
        )

    def finished(self, images: int) -> None:
        self.done += images
        self.tell("scoring", self.done, self.total)


def recognised(seen: Summary, classes: Tensor | None) -> float | None:
    """The share whose most probable class is the one asked for; None where the extractor does not know the classes."""
    return None if classes is None else float((seen.classes == classes[seen.labels]).double().mean())


def curve_scores(seen: Summary | None, real: Summary, classes: Tensor | None) -> Scores:
    """distance: Frechet distance of features. recognised: as the function says.

    All None where there is nothing to compare.
    """
    if seen is None:
        return dict.fromkeys(CURVE_SCORES)
    return {"distance": frechet_distance(seen.statistics, real.statistics), "recognised": recognised(seen, classes)}


def final_scores(seen: Summary | None, real: Summary, classes: Tensor | None) -> Scores:
    """The same, and what other measures say of the features: see `fitv2.evaluation`."""
    if seen is None:
        return dict.fromkeys(SCORES)
    return curve_scores(seen, real, classes) | other_scores(*map(all_of, (seen, real)))


def all_of(summary: Summary) -> ImageSet:
    return ImageSet(summary.pooled, by_class(summary.labels))


def other_scores(own: ImageSet, real: ImageSet) -> Scores:
    found = kernel_distance(own.features, real.features, own.classes, real.classes)
    return {"kid": found.value} | asdict(compare_neighbours(own.features, real.features))

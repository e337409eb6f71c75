"""An evaluation: which images, seen how, are compared with which; each result with its stamp.

Protocols say what of an image is compared when samples have one size and real images have not:

adm-square: Images as they are. The extractor resizes both sides whole: Inception and EfficientNet stretch them to a
    square, the classifier of garments keeps the aspect. With ADM's files this is the protocol of the papers, in which a
    wide sample is squeezed and meets square crops.
matched: Real images are scaled to cover the size of the samples and cropped to it. Then both are resized alike.
centre: Both are cropped to their central square, which shows the quality of the middle and ignores the borders.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ..errors import UserError
from .comparison import VERSION, Side, compare, figure_names
from .extractors import Extractor
from .features import FeatureSet, cached_features, compute_features
from .references import Known, Reference
from .results import Result
from .samples import Progress, Samples
from .sources import Images, View

Protocol = Literal["adm-square", "matched", "centre"]
FILTER = "antialiased bicubic"
Size = tuple[int, int]


def real_view(image: Image.Image, protocol: Protocol, size: Size | None) -> Image.Image:
    """Returns a real image as it is compared with samples of that (height, width) in pixels; None: of many sizes."""
    if protocol == "matched" and size is not None:
        return cover(image, size)
    if protocol == "centre":
        return central_square(image) if size is None else cover(image, (min(size), min(size)))
    return image


def sample_view(image: Image.Image, protocol: Protocol) -> Image.Image:
    """Returns a sample as it is compared with real images."""
    return central_square(image) if protocol == "centre" else image


def cover(image: Image.Image, size: Size) -> Image.Image:
    """Scales an image to cover (height, width), aspect kept, and returns the centre (bicubic, antialiased)."""
    height, width = size
    scale = max(height / image.height, width / image.width)
    # Resampling only what remains gives the same pixels, without the whole scaled image in memory.
    left, top = (image.width - width / scale) / 2, (image.height - height / scale) / 2
    box = (max(left, 0), max(top, 0), min(image.width - left, image.width), min(image.height - top, image.height))
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


def central_square(image: Image.Image) -> Image.Image:
    """Returns the largest square around the centre."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How samples are compared, by which metrics and protocol (None: the usual one).

    cache, kept: Folders for features of real images and of samples.
    """

    reference: Reference
    extractor: Extractor
    metrics: Collection[str]
    protocol: Protocol | None
    cache: Path
    kept: Path
    progress: Progress

    def protocol_for(self, size: Size | None) -> Protocol:
        """Returns the protocol for samples of that size, None for many sizes. Raises UserError if none is possible.

        The default is "matched". It is "adm-square" if statistics of images as they are come with the reference, or if
        samples and real images have many sizes.
        """
        usual: Protocol = "adm-square" if self.reference.known is not None or size is None else "matched"
        protocol = self.protocol or usual
        if protocol == "matched" and size is None:
            raise UserError("the protocol matched needs samples of one size; give --size HxW, or another --protocol")
        if self.reference.images is None and self.known(protocol) is None:
            known = self.reference.known.extractor if self.reference.known else "another extractor"
            raise UserError(
                f"{self.reference.name} holds statistics of {known} by adm-square, and no images for "
                f"{self.extractor.name} by {protocol}"
            )
        return protocol

    def known(self, protocol: Protocol) -> Known | None:
        """Returns the statistics that come with the reference, if they are the ones that are needed."""
        known = self.reference.known
        return known if known and known.extractor == self.extractor.name and protocol == "adm-square" else None

    def about(self) -> dict[str, Any]:
        """Returns all that decides a result besides the samples."""
        extractor = [self.extractor.name, self.extractor.digest, self.extractor.resize]
        of_all = {"suite": VERSION, "reference": self.reference.digest, "protocol": self.protocol}
        return of_all | {"extractor": extractor, "metrics": sorted(set(self.metrics))}

    def score(self, samples: Samples) -> Result:
        """Compares samples with the reference. Raises UserError if they do not go together."""
        protocol = self.protocol_for(samples.size)
        own = self.see_samples(samples, protocol)
        real, count, notes = self.see_reference(protocol, samples.size)
        side = Side(samples.images.class_names, own.statistics, own.spatial, own)
        found = compare(side, real, self.extractor, self.metrics)
        stamp = {
            "suite": VERSION,
            "size": samples.called,
            "protocol": protocol,
            "filter": None if protocol == "adm-square" else FILTER,
            "num": len(samples.chosen),
            "reference": self.reference.name,
            "reference_sha256": self.reference.digest,
            "reference_count": count,
            "reference_statistics": "of its pictures" if self.known(protocol) is None else "given",
            "extractor": self.extractor.name,
            "names": figure_names(self.extractor.score),
            "extractor_sha256": self.extractor.digest,
            "resize": self.extractor.resize,
        }
        notes = [*found.notes, *notes, *samples.notes]
        return Result(stamp | samples.about, found.scores, found.real, notes, found.equal)

    def see_samples(self, samples: Samples, protocol: Protocol) -> FeatureSet:
        """Returns the features of samples."""
        images, chosen = samples.images, samples.chosen
        key = (images.digest, chosen.tolist(), protocol if protocol == "centre" else "as they are")
        view = partial(sample_view, protocol=protocol)
        return self.see(images, chosen, view, self.kept, key, f"samples {samples.called}")

    def see_reference(self, protocol: Protocol, size: Size | None) -> tuple[Side, int, list[str]]:
        """Returns the reference as samples of that size meet it, its number of images (0: not known), and notes."""
        known, images = self.known(protocol), self.reference.images
        features, names, notes = None, [], []
        if images is not None:
            names, notes = images.class_names, list(images.notes)
            # For statistics that are known, no real image has to be seen.
            if known is None or set(self.metrics) - {"fd", "sfd"}:
                key = (images.digest, protocol, None if protocol == "adm-square" else size, FILTER)
                view = partial(real_view, protocol=protocol, size=size)
                features = self.see(images, np.arange(len(images)), view, self.cache, key, "real images")
                notes += enlarged_note(images.sizes, protocol, size)
        if known is None:
            assert features is not None  # See `protocol_for`.
            return Side(names, features.statistics, features.spatial, features), int(features.count), notes
        if not known.statistics.count:
            notes.append("the reference does not say how many images its statistics are of")
        side = Side(names, known.statistics, known.spatial, features, known.recognised)
        return side, known.statistics.count, notes

    def see(
        self, images: Images, chosen: np.ndarray, view: View, folder: Path, key: tuple[object, ...], what: str
    ) -> FeatureSet:
        """Returns the features of views of chosen images, see `cached_features`."""

        def compute() -> FeatureSet:
            with self.progress(f"extracting features of {what}", len(chosen)) as done:
                views = images.read(chosen.tolist(), self.extractor.mode, view)
                return compute_features(self.extractor, views, images.labels[chosen], done)

        return cached_features(folder, self.extractor, key, compute)


def enlarged_note(sizes: np.ndarray, protocol: Protocol, size: Size | None) -> list[str]:
    """Returns a note if real images are smaller than the samples, because enlarging blurs them."""
    if protocol == "adm-square" or size is None:
        return []
    height, width = size if protocol == "matched" else (min(size), min(size))
    smaller = int(((sizes[:, 0] < height) | (sizes[:, 1] < width)).sum())
    told = f"{smaller} of {len(sizes)} real images are smaller than {height}x{width} and were enlarged"
    return [told] if smaller else []

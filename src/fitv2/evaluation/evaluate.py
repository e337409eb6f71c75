"""An evaluation: samples are compared with a reference by a protocol, and each result has a stamp.

Protocols decide what is compared of an image when samples have one size and real images have many:

adm-square: Images as they are. The extractor resizes both sides whole: Inception and EfficientNet stretch them to a
    square, the classifier of garments keeps the aspect. With ADM's files this is the protocol of the papers, in which a
    wide sample is squeezed and meets square crops.
matched: Real images are scaled to cover the size of the samples and cropped to it. Then both are resized alike.
centre: Both are cropped to their central square, which shows the quality of the middle and ignores the borders.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from ..errors import UserError
from .comparison import VERSION, compare, figure_names
from .extractors import Extractor
from .features import FeatureSet, cached_features, compute_features
from .references import Known, Reference
from .results import Result
from .samples import Progress, Samples
from .sources import Images, View

Protocol = Literal["adm-square", "matched", "centre"]
FILTER = "antialiased bicubic"
Size = tuple[int, int]


def real_size(protocol: Protocol, size: Size | None) -> Size | None:
    """Returns the size to which real images are scaled and cropped for samples of that size; None for their own."""
    if protocol == "adm-square" or size is None:
        return None
    return size if protocol == "matched" else (min(size), min(size))


def view_of(image: Image.Image, protocol: Protocol, size: Size | None = None) -> Image.Image:
    """Returns an image as it is compared, scaled to cover (height, width) if given and cropped to it."""
    if size is not None:
        return ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC)
    if protocol != "centre":
        return image
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
            raise UserError(
                f"{self.reference.name} holds statistics of one extractor by adm-square, and no images for "
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
        protocol, size, images = self.protocol_for(samples.size), samples.size, self.reference.images
        key = (samples.images.digest, samples.chosen.tolist(), protocol if protocol == "centre" else "as they are")
        view = partial(view_of, protocol=protocol)
        own = self.see(samples.images, samples.chosen, view, self.kept, key, f"samples {samples.called}")
        known, others, notes = self.known(protocol), None, list(images.notes) if images else []
        # For statistics that are known, no real image has to be seen.
        if images is not None and (known is None or set(self.metrics) - {"fd", "sfd"}):
            key = (images.digest, protocol, None if protocol == "adm-square" else size, FILTER)
            fitted = real_size(protocol, size)
            view = partial(view_of, protocol=protocol, size=fitted)
            others = self.see(images, np.arange(len(images)), view, self.cache, key, "real images")
            if fitted and (smaller := int((images.sizes < fitted).any(1).sum())):
                size_told = f"{fitted[0]}x{fitted[1]}"
                notes.append(f"{smaller} of {len(images)} real images are smaller than {size_told} and were enlarged")
        result = compare(own, others, known, self.extractor, self.metrics)
        real = known or others
        assert real is not None  # See `protocol_for`.
        if not real.statistics.count:
            notes.append("the reference does not say how many images its statistics are of")
        result.notes += [*notes, *samples.notes]
        result.stamp = {
            "suite": VERSION,
            "size": samples.called,
            "protocol": protocol,
            "filter": None if protocol == "adm-square" else FILTER,
            "num": len(samples.chosen),
            "reference": self.reference.name,
            "reference_sha256": self.reference.digest,
            "reference_count": real.statistics.count,
            "reference_statistics": "of its pictures" if known is None else "given",
            "extractor": self.extractor.name,
            "names": figure_names(self.extractor.score),
            "extractor_sha256": self.extractor.digest,
            "resize": self.extractor.resize,
        } | samples.about
        return result

    def see(
        self, images: Images, chosen: np.ndarray, view: View, folder: Path, key: tuple[object, ...], what: str
    ) -> FeatureSet:
        """Returns the features of views of chosen images, see `cached_features`."""

        def compute() -> FeatureSet:
            with self.progress(f"extracting features of {what}", len(chosen)) as done:
                views = images.read(chosen.tolist(), self.extractor.mode, view)
                return compute_features(self.extractor, views, images.labels[chosen], done)

        return replace(cached_features(folder, self.extractor, key, compute), class_names=images.class_names)

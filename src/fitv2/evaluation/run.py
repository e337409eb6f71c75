"""An evaluation: which pictures, seen how, against which; each result with its stamp."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..messages import counted
from .features import Extractor
from .pictures import FolderPictures, Pictures, in_turn
from .protocols import FILTER, Protocol, real_view, sample_view
from .references import Reference
from .results import CLASSES, LABELS, Result, class_counts
from .suite import VERSION, Side, figure_names, measure
from .summary import Summary, kept_summary, summarise

# (what is being done, how many) to a context whose value takes the number just finished.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Pictures to evaluate. size: their (height, width), None for many; called: that size in words. about: what a stamp
    has to say of where they come from, "labels" and "seeds" at least. notes: what has to be said of their files.
    """

    pictures: Pictures
    chosen: np.ndarray
    size: tuple[int, int] | None
    called: str
    about: dict[str, Any] = field(repr=False)
    notes: tuple[str, ...] = ()


def given_samples(pictures: Pictures, sizes: Collection[tuple[int, int]], number: int | None) -> Iterator[Samples]:
    """Of pictures that are there already those of each size, in pixels; without sizes, all.

    number: so many of each, classes in turn; None for all. Raises ValueError where there are fewer, or none of a size.
    """
    found = np.unique(pictures.sizes, axis=0)
    for size in sizes or [tuple(found[0].tolist()) if len(found) == 1 else None]:
        chosen = np.arange(len(pictures.sizes))
        if size is not None:
            chosen = np.flatnonzero((pictures.sizes == size).all(1))
        if not len(chosen):
            told = ", ".join(f"{height}x{width}" for height, width in found[:10].tolist())
            raise UserError(
                f"{pictures.name} has no picture of {size[0]}x{size[1]}; its sizes are {told}"
                + (" and so on" if len(found) > 10 else "")
            )
        called = "own" if size is None else f"{size[0]}x{size[1]}"
        if number is not None and number > len(chosen):
            raise UserError(f"{pictures.name} has {counted(len(chosen), 'picture')} of the size {called}, not {number}")
        if number is not None and number < len(chosen):
            chosen = chosen[in_turn(pictures.labels[chosen], number)]
        about = {"samples": pictures.name, "samples_sha256": pictures.digest, "seeds": None}
        about[LABELS] = class_counts(pictures.labels[chosen], len(pictures.class_names))
        about[CLASSES] = list(pictures.class_names) or None
        notes = file_notes(pictures, chosen)
        yield Samples(pictures=pictures, chosen=chosen, size=size, called=called, about=about, notes=notes)


def file_notes(pictures: Pictures, chosen: np.ndarray) -> tuple[str, ...]:
    """Extractors see what JPEG loses (arXiv 2104.11222), which is no fault of whoever made the pictures."""
    if not isinstance(pictures, FolderPictures):
        return ()
    lossy = sum(pictures.paths[i].lower().endswith((".jpg", ".jpeg", ".jfif")) for i in chosen.tolist())
    told = [f"{lossy} of {len(chosen)} samples are JPEG files, whose losses count as theirs"] if lossy else []
    return (*told, *pictures.notes)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How samples are compared. protocol: None for the usual one. cache, kept: folders for what was seen in real
    pictures and in samples.
    """

    reference: Reference
    extractor: Extractor
    metrics: Collection[str]
    protocol: Protocol | None
    cache: Path
    kept: Path
    progress: Progress

    def protocol_for(self, size: tuple[int, int] | None) -> Protocol:
        """The protocol for samples of that size, None for many. Raises ValueError where there is none for them.

        By default "matched"; "adm-square" where statistics of pictures as they are come with the reference, or samples
        of many sizes are compared with pictures of many sizes.
        """
        usual = "adm-square" if self.reference.known is not None or size is None else "matched"
        protocol = self.protocol or usual
        if protocol == "matched" and size is None:
            raise UserError("the protocol matched needs samples of one size; give --size HxW, or another --protocol")
        if self.reference.pictures is None and not self.knows(protocol):
            raise UserError(
                f"{self.reference.name} holds statistics of the extractor {self.reference.known.extractor} by "
                f"adm-square, and no pictures for {self.extractor.name} by {protocol}"
            )
        return protocol

    def knows(self, protocol: Protocol) -> bool:
        """Whether the statistics that come with the reference are what is needed."""
        known = self.reference.known
        return known is not None and known.extractor == self.extractor.name and protocol == "adm-square"

    def about(self) -> dict[str, Any]:
        """All that decides a result besides the samples."""
        extractor = [self.extractor.name, self.extractor.digest, self.extractor.resize]
        of_all = {"suite": VERSION, "reference": self.reference.digest, "protocol": self.protocol}
        return of_all | {"extractor": extractor, "metrics": sorted(set(self.metrics))}

    def score(self, samples: Samples) -> Result:
        """Raises ValueError where samples and reference do not go together."""
        protocol = self.protocol_for(samples.size)
        own = self.see_samples(samples, protocol)
        real, count, notes = self.see_reference(protocol, samples.size)
        side = Side(samples.pictures.class_names, own.statistics, own.spatial, own)
        found = measure(side, real, self.extractor, self.metrics)
        stamp = {
            "suite": VERSION,
            "size": samples.called,
            "protocol": protocol,
            "filter": None if protocol == "adm-square" else FILTER,
            "num": len(samples.chosen),
            "reference": self.reference.name,
            "reference_sha256": self.reference.digest,
            "reference_count": count,
            "reference_statistics": "given" if self.knows(protocol) else "of its pictures",
            "extractor": self.extractor.name,
            "names": figure_names(self.extractor.score),
            "extractor_sha256": self.extractor.digest,
            "resize": self.extractor.resize,
        }
        notes = [*found.notes, *notes, *samples.notes]
        return Result(stamp | samples.about, found.scores, found.real, notes, found.equal)

    def see_samples(self, samples: Samples, protocol: Protocol) -> Summary:
        pictures, chosen = samples.pictures, samples.chosen
        cut = protocol if protocol == "centre" else "as they are"
        return kept_summary(
            self.kept,
            self.extractor,
            (pictures.digest, chosen.tolist(), cut),
            lambda: self.see(pictures, chosen, lambda image: sample_view(image, protocol), f"samples {samples.called}"),
        )

    def see_reference(self, protocol: Protocol, size: tuple[int, int] | None) -> tuple[Side, int, list[str]]:
        """The reference as samples of that size meet it, the number of its pictures (0: not known), and notes."""
        known, pictures = self.reference.known if self.knows(protocol) else None, self.reference.pictures
        summary, notes = None, list(getattr(pictures, "notes", ()))
        # Statistics alone spare all real pictures.
        if pictures is not None and (known is None or set(self.metrics) - {"fd", "sfd"}):
            summary = self.see_pictures(pictures, protocol, size)
            if protocol != "adm-square" and size is not None:
                notes += enlarged_note(pictures.sizes, protocol, size)
        names = [] if pictures is None else pictures.class_names
        if known is not None:
            if not known.statistics.count:
                notes.append("the reference does not say of how many pictures its statistics are")
            side = Side(names, known.statistics, known.spatial, summary, known.recognised)
            return side, known.statistics.count, notes
        return Side(names, summary.statistics, summary.spatial, summary), int(summary.count), notes

    def see_pictures(self, pictures: Pictures, protocol: Protocol, size: tuple[int, int] | None) -> Summary:
        key = (pictures.digest, protocol, None if protocol == "adm-square" else size, FILTER)
        indices = np.arange(len(pictures.sizes))
        return kept_summary(
            self.cache,
            self.extractor,
            key,
            lambda: self.see(pictures, indices, lambda image: real_view(image, protocol, size), "real pictures"),
        )

    def see(self, pictures: Pictures, chosen: np.ndarray, view: Callable, what: str) -> Summary:
        with self.progress(f"looking at {what}", len(chosen)) as done:
            images = pictures.read(chosen.tolist(), self.extractor.mode, view)
            return summarise(self.extractor, images, pictures.labels[chosen], done)


def enlarged_note(sizes: np.ndarray, protocol: Protocol, size: tuple[int, int]) -> list[str]:
    """Real pictures that are smaller than what they are compared with are blurred by that."""
    height, width = size if protocol == "matched" else (min(size), min(size))
    smaller = int(((sizes[:, 0] < height) | (sizes[:, 1] < width)).sum())
    if not smaller:
        return []
    return [f"{smaller} of {len(sizes)} real pictures are smaller than {height}x{width} and were enlarged"]

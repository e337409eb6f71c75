"""Results with stamps that say how they came about; results are compared where stamps agree in what moves a figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import write_text
from ..errors import UserError
from ..messages import shortened

FORMAT = 2
# What must be the same in figures that stand side by side, and how a sentence calls it.
MUST_AGREE = {
    "suite": "version of the suite",
    "protocol": "protocol",
    "filter": "resize filter",
    "num": "number of pictures",
    "reference_sha256": "reference",
    "reference_count": "number of real pictures",
    "extractor": "extractor",
    "extractor_sha256": "weights of the extractor",
    "resize": "resize of the extractor",
}
LABELS, OWN_CHOICE, CLASSES = "labels", "as the model likes", "class_names"
# What reading a result needs besides.
NEEDED = MUST_AGREE.keys() | {LABELS, "size", "names", "reference"}


@dataclass(frozen=True)
class Result:
    """Figures of samples of one size. stamp: how they came about; all else: see `suite.Measured`."""

    stamp: dict[str, Any]
    scores: dict[str, Any]
    real: dict[str, Any]
    notes: list[str]
    equal: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What tells it from others of the same run."""
        guidance = self.stamp.get("sampling", {}).get("guidance")
        return self.stamp["size"] + ("" if guidance is None else f" at {guidance:g}")


def titles(results: Sequence[Result]) -> dict[str, str]:
    """What to call those figures that are named after a network, by key, as far as one of the results has them."""
    keys = dict.fromkeys(key for result in results for key in result.stamp["names"])
    return {
        key: " / ".join(dict.fromkeys(result.stamp["names"][key] for result in results))
        for key in keys
        if any(key in result.scores for result in results)
    }


def report(results: Sequence[Result]) -> dict[str, Any]:
    """What result.json holds."""
    versions = {package: version(package) for package in ("fitv2", "torch")}
    return {"format": FORMAT, "versions": versions, "results": [asdict(result) for result in results]}


def write_results(path: Path, results: Sequence[Result]) -> None:
    write_text(path, json.dumps(report(results), indent=1))


def read_results(path: Path) -> list[Result]:
    """Raises ValueError for anything but what `write_results` wrote."""
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise UserError(f"format {content['format']}, and this version reads {FORMAT}: evaluate anew")
        results = [Result(**result) for result in content["results"]]
        if any(missing := NEEDED - result.stamp.keys() for result in results):
            raise UserError(f"stamps without {', '.join(sorted(missing))}")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no result of fitv2 evaluate ({error})") from None
    return results


def class_counts(labels: np.ndarray, classes: int) -> str | None:
    """How often each class is there, from the labels (N,) of pictures; None where they have no classes."""
    if not classes:
        return None
    counts = np.bincount(labels, minlength=classes)
    few, many = int(counts.min()), int(counts.max())
    return f"{classes} classes, " + ("balanced" if many - few <= 1 else f"{few} to {many} pictures of each")


def difference(files: Mapping[str, Sequence[Result]]) -> str | None:
    """In words, the first thing that makes results of these files incomparable; None where nothing does.

    That is what moves the figures of equally good pictures: another suite, protocol, reference or extractor, and the
    number of pictures, with which a Frechet distance falls. So does how often each class is there: a model of all its
    classes in turn is not to be set against samples that are mostly dogs. Where nobody knows it, `remarks` says so:
    samples as people hand them on seldom have labels. Seeds say which noise was drawn, which is chance and has no
    direction; equal ones make a comparison of models paired, different ones do not make it wrong. Sizes are compared
    each with its like.
    """
    sizes = {file: list(dict.fromkeys(result.stamp["size"] for result in results)) for file, results in files.items()}
    if not set.intersection(*map(set, sizes.values())):
        return "sizes: " + ", ".join(f"{', '.join(of_file)} in {file}" for file, of_file in sizes.items())
    known: dict[tuple[str, str], tuple[str, Any]] = {}
    where_known = {CLASSES: "classes", LABELS: "frequency of classes"}
    for file, results in files.items():
        for result in results:
            size = result.stamp["size"]
            for key, called in (MUST_AGREE | where_known).items():
                value = result.stamp.get(key)
                if key in where_known and value in (None, OWN_CHOICE):
                    continue
                known_file, first = known.setdefault((size, key), (file, value))
                if first != value:
                    return f"{called} at {size}: {in_words(first)} in {known_file}, {in_words(value)} in {file}"
    return None


def in_words(value: Any) -> str:
    """Of many names the first."""
    return shortened(value) if isinstance(value, list) else str(value)


def remarks(files: Mapping[str, Sequence[Result]]) -> list[str]:
    """What has to be known to compare results of these files, in sentences."""
    found, all_sizes = [], {result.stamp["size"] for results in files.values() for result in results}
    labels = {file: {result.stamp[LABELS] for result in results} for file, results in files.items()}
    if unknown := [file for file, of_file in labels.items() if None in of_file]:
        found.append(
            f"how often each class is there is not known of {', '.join(unknown)}: figures compare if it is as in the "
            "others"
        )
    likes = [file for file, of_file in labels.items() if OWN_CHOICE in of_file]
    if likes and len(set.union(*labels.values()) - {None}) > 1:
        found.append(f"{', '.join(likes)}: of a model that is asked for no class, while others are told which")
    if any(size.startswith("own") for size in all_sizes):
        found.append("own: each in sizes of its own, which may be others in another file")
    for size in sorted(all_sizes):
        if lacking := [file for file, results in files.items() if size not in {r.stamp["size"] for r in results}]:
            found.append(f"{size} is not in {', '.join(lacking)}; compare what has the same size")
    return found

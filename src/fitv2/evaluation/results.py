"""Results: figures with a stamp that says how they came about, their files, and whether they can be compared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..drawing import BLUE, GREY, ORANGE, Panel
from ..errors import UserError
from ..messages import shortened
from ..system.atomic import write_text
from ..system.locks import locked
from ..system.provenance import provenance

FORMAT = 2
ABOUT, RESULT, PLOT = "evaluation.json", "result.json", "scores.png"
WRITTEN = (RESULT, PLOT, "sheet-*.png", "samples-*.npz")
# Keys of a stamp that must agree if results are compared, and their names in a sentence.
MUST_AGREE = {
    "suite": "version of the suite",
    "protocol": "protocol",
    "filter": "resize filter",
    "num": "number of images",
    "reference_sha256": "reference",
    "reference_count": "number of real images",
    "extractor": "extractor",
    "extractor_sha256": "weights of the extractor",
    "resize": "resize of the extractor",
}
LABELS, OWN_CHOICE, CLASSES = "labels", "as the model likes", "class_names"
# How seeds and labels follow from the seed of an evaluation and the index of an image.
SEED_SCHEME, LABEL_SCHEME = "seed + index", "classes in turn"
# The same for keys that are not known of all samples.
IF_KNOWN = {CLASSES: "classes", LABELS: "frequency of classes"}
# Keys without which no stamp is read.
NEEDED = MUST_AGREE.keys() | {LABELS, "size", "names", "reference"}
# Figures that have the same name whatever the extractor.
NEIGHBOURHOODS = ("precision", "recall", "density", "coverage")
Figures = dict[str, Any]


@dataclass
class Result:
    """Figures of samples of one size, by key.

    fd and sfd are the Fréchet distances of pooled and spatial features, kid is the kernel distance. KEY_error is a
    standard error, KEY_std the standard deviation over subsets or parts. accuracy and accuracy_per_class are fractions
    in [0, 1] of images whose class is recognised.

    Attributes:
        stamp: How the figures came about.
        scores: Of the samples.
        real: Of real images.
        notes: In sentences.
        equal: Of as many samples as there are images in `real`, see `comparison.add_equal_numbers`.
    """

    stamp: dict[str, Any] = field(default_factory=dict)
    scores: Figures = field(default_factory=dict)
    real: Figures = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    equal: Figures = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name among results of the same evaluation."""
        sampling = self.stamp.get("sampling", {})
        guidance, internal = sampling.get("guidance"), sampling.get("internal_guidance", 1)
        inside = "" if internal == 1 else f", internal {internal:g}"
        return self.stamp["size"] + ("" if guidance is None else f" at {guidance:g}{inside}")


def titles(results: Sequence[Result]) -> dict[str, str]:
    """Returns what all figures but the accuracy are called, by key, if one of the results has them."""
    called: dict[str, dict[str, None]] = {}
    for result in results:
        for key, title in result.stamp["names"].items():
            called.setdefault(key, {})[title] = None
    names = {key: " / ".join(of_key) for key, of_key in called.items()} | {key: key for key in NEIGHBOURHOODS}
    return {key: name for key, name in names.items() if any(key in result.scores for result in results)}


def report(results: Sequence[Result]) -> dict[str, Any]:
    """Returns the content of result.json."""
    versions = {package: version(package) for package in ("fitv2", "torch")}
    return {"format": FORMAT, "versions": versions, "results": [asdict(result) for result in results]}


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Writes result.json, with the code and the machine that made it."""
    write_text(path, json.dumps(report(results) | {"provenance": provenance()}, indent=1))


def read_results(path: Path) -> list[Result]:
    """Returns the results in a file of `write_results`. Raises UserError for any other file."""
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise UserError(f"its format is {content['format']}, and this version reads {FORMAT}: evaluate again")
        results = [Result(**result) for result in content["results"]]
        if any(missing := NEEDED - result.stamp.keys() for result in results):
            raise UserError(f"stamps without {', '.join(sorted(missing))}")
    except OSError as error:
        cure = "name an existing file, or make one with fitv2 evaluate MODEL --reference IMAGES --out FOLDER"
        raise UserError(f"{path} cannot be read ({error.strerror}): {cure}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a result of fitv2 evaluate ({error}): name its {RESULT}") from None
    return results


def panels(results: Sequence[Result]) -> list[Panel]:
    """Returns a panel for each figure that one of the results has."""
    names = titles(results) | {"accuracy": "accuracy"}
    having = {key: [result for result in results if key in result.scores] for key in names}
    return [partial(bars, having[key], key, name) for key, name in names.items() if having[key]]


def bars(results: Sequence[Result], key: str, title: str, axes: Axes) -> None:
    """Draws a bar for each result, with its standard error, or its standard deviation over parts.

    Dashed lines are real images, at equal numbers if the figure depends on numbers, with the range of the draws.
    """
    spread = [result.scores.get(f"{key}_error", result.scores.get(f"{key}_std", 0)) for result in results]
    heights = [result.equal.get(key, result.scores[key]) for result in results]
    axes.bar(range(len(results)), heights, yerr=spread if any(spread) else None, color=BLUE, ecolor=ORANGE, capsize=3)
    for place, real in enumerate(result.real for result in results):
        if key in real:
            axes.hlines(real[key], place - 0.4, place + 0.4, color=GREY, linestyle="--")
        if f"{key}_range" in real:
            axes.vlines(place + 0.4, *real[f"{key}_range"], color=GREY)
    axes.set_title(title + (" (dashed: real images)" if any(key in result.real for result in results) else ""))
    axes.set_xticks(range(len(results)), [r.name for r in results], rotation=30 if len(results) > 3 else 0, fontsize=7)
    axes.set_xlim(-0.6, len(results) - 0.4)
    axes.grid(axis="y", alpha=0.3)


# The folder of an evaluation: each has its own, so that no result overwrites another.


@contextmanager
def reserved(folder: Path, about: dict[str, Any]) -> Iterator[None]:
    """Reserves a folder for an evaluation; `about` is all that decides the result.

    The same evaluation may write there again, also with more images of the model, which include the earlier ones.
    Raises UserError if another process evaluates there, or if the folder has the result of another evaluation, or files
    that no evaluation wrote.
    """
    with locked(folder, "an evaluation"):
        path, text = folder / ABOUT, json.dumps(about, indent=1, sort_keys=True)
        if not path.is_file():
            if there := sorted(file for name in WRITTEN for file in folder.glob(name)):
                raise UserError(f"{there[0]} is not of this evaluation and might be overwritten: choose another --out")
        elif (folder / RESULT).exists() and not goes_on(path, json.loads(text)):
            raise UserError(
                f"{folder} holds another evaluation ({path} says which): choose another --out, or omit --out to give "
                "each evaluation its own folder"
            )
        write_text(path, text)
        yield


def goes_on(path: Path, now: dict[str, Any]) -> bool:
    """Whether an evaluation is the one that a file describes, or differs from it only in more images of the model."""
    try:
        before = json.loads(path.read_bytes())
        more = "model_sha256" in now and now["num"] > before["num"] and now == before | {"num": now["num"]}
    except (ValueError, KeyError, TypeError):
        return False
    return more or now == before


# Comparison


def class_counts(labels: np.ndarray, classes: int) -> str | None:
    """Returns how often each class is there, given the labels (N,) of images; None without classes."""
    if not classes:
        return None
    counts = np.bincount(labels, minlength=classes)
    few, many = int(counts.min()), int(counts.max())
    # In this form it is compared with results of earlier versions.
    return f"{classes} classes, " + ("balanced" if many - few <= 1 else f"{few} to {many} images of each")


def difference(files: Mapping[str, Sequence[Result]]) -> str | None:
    """Returns in words the first thing that makes results of these files incomparable; None if they are comparable.

    These are the things that change the figures of equally good images: suite, protocol, reference, extractor, the
    number of images and how often each class is there. Where the classes are not known, `remarks` says so: samples as
    people pass them on seldom have labels. Seeds decide which noise was drawn, which is chance without a direction.
    Each size is compared with the same size.
    """
    sizes = {file: list(dict.fromkeys(result.stamp["size"] for result in results)) for file, results in files.items()}
    if not set.intersection(*map(set, sizes.values())):
        return "sizes: " + ", ".join(f"{', '.join(of_file)} in {file}" for file, of_file in sizes.items())
    known: dict[tuple[str, str], tuple[str, Any]] = {}
    for file, stamp in stamps(files):
        for key, called in (MUST_AGREE | IF_KNOWN).items():
            value, size = stamp.get(key), stamp["size"]
            if key in IF_KNOWN and value in (None, OWN_CHOICE):
                continue
            other, first = known.setdefault((size, key), (file, value))
            if first != value:
                one, two = (shortened(v) if isinstance(v, list) else v for v in (first, value))
                return f"{called} at {size}: {one} in {other}, {two} in {file}"
    return None


def stamps(files: Mapping[str, Sequence[Result]]) -> list[tuple[str, dict[str, Any]]]:
    """Returns the file and stamp of each result."""
    return [(file, result.stamp) for file, results in files.items() for result in results]


def remarks(files: Mapping[str, Sequence[Result]]) -> list[str]:
    """Returns notes for readers who compare results of these files."""
    found, all_stamps = [], stamps(files)
    if unknown := dict.fromkeys(file for file, stamp in all_stamps if stamp[LABELS] is None):
        found.append(
            f"how often each class occurs in {', '.join(unknown)} is not known; compare only equal frequencies"
        )
    free = dict.fromkeys(file for file, stamp in all_stamps if stamp[LABELS] == OWN_CHOICE)
    if free and any(stamp[LABELS] not in (None, OWN_CHOICE) for _, stamp in all_stamps):
        found.append(f"{', '.join(free)}: the model was asked for no class, and the others were")
    sizes = sorted({stamp["size"] for _, stamp in all_stamps})
    if any(size.startswith("own") for size in sizes):
        found.append("own: samples of many sizes, which may be other sizes in another file")
    found += [
        f"{size} is not in {', '.join(sorted(lacking))}; compare what has the same size"
        for size in sizes
        if (lacking := files.keys() - {file for file, stamp in all_stamps if stamp["size"] == size})
    ]
    seeds = {(s["model_sha256"], s["seed"], s["num"]) for _, s in all_stamps if s.get("seeds") == SEED_SCHEME}
    for (model, seed, number), (other_model, other, _) in permutations(sorted(seeds), 2):
        if model == other_model and seed < other < seed + number:
            found.append(
                f"the seeds {seed} and {other} are less than {number} apart, so some images have the same noise: these "
                "samples are not independent"
            )
            break
    return found

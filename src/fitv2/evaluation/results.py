"""Results: the stamp that says how each came about, their files, and whether they can be compared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import write_text
from ..errors import UserError
from ..hashes import json_digest
from ..locks import locked
from ..messages import shortened

FORMAT = 2
ABOUT, RESULT, PLOT = "evaluation.json", "result.json", "scores.png"
WRITTEN = (RESULT, PLOT, "sheet-*.png", "samples-*.npz")
# What must be the same in figures that stand side by side, and what a sentence calls it.
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
# The same for what is not known of all samples.
IF_KNOWN = {CLASSES: "classes", LABELS: "frequency of classes"}
# What reading a result needs besides.
NEEDED = MUST_AGREE.keys() | {LABELS, "size", "names", "reference"}


@dataclass(frozen=True)
class Result:
    """Figures of samples of one size; `stamp` says how they came about. The rest is that of `comparison.Comparison`."""

    stamp: dict[str, Any]
    scores: dict[str, Any]
    real: dict[str, Any]
    notes: list[str]
    equal: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What tells it from others of the same evaluation."""
        guidance = self.stamp.get("sampling", {}).get("guidance")
        return self.stamp["size"] + ("" if guidance is None else f" at {guidance:g}")


def titles(results: Sequence[Result]) -> dict[str, str]:
    """Returns what to call the figures that are named after an extractor, by key, if one of the results has them."""
    keys = dict.fromkeys(key for result in results for key in result.stamp["names"])
    return {
        key: " / ".join(dict.fromkeys(result.stamp["names"][key] for result in results))
        for key in keys
        if any(key in result.scores for result in results)
    }


def report(results: Sequence[Result]) -> dict[str, Any]:
    """Returns what result.json holds."""
    versions = {package: version(package) for package in ("fitv2", "torch")}
    return {"format": FORMAT, "versions": versions, "results": [asdict(result) for result in results]}


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Writes result.json."""
    write_text(path, json.dumps(report(results), indent=1))


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
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a result of fitv2 evaluate ({error})") from None
    return results


# The folder of an evaluation: each has its own, so that no result overwrites another.


def own_folder(root: Path, name: str, about: dict[str, Any]) -> Path:
    """Returns a folder below `root`, named after what is evaluated and a digest of all that decides the result."""
    return root / f"{name}-{json_digest(about)[:12]}"


@contextmanager
def claimed(folder: Path, about: dict[str, Any]) -> Iterator[None]:
    """Reserves a folder for an evaluation, of which `about` is all that decides the result.

    The same evaluation may write there again. Raises UserError if another process evaluates there, or if the folder has
    the result of another evaluation, or files that no evaluation wrote.
    """
    with locked(folder, "an evaluation"):
        path, text = folder / ABOUT, json.dumps(about, indent=1, sort_keys=True)
        known = path.is_file()
        if known and (folder / RESULT).exists() and (changed := _differences(path, about)):
            raise UserError(
                f"{folder} holds another evaluation, with another {' and '.join(changed)}: choose another --out, "
                "or omit --out to give each evaluation its own folder"
            )
        if not known and (there := sorted(file for name in WRITTEN for file in folder.glob(name))):
            raise UserError(f"{there[0]} is not of this evaluation and might be overwritten: choose another --out")
        write_text(path, text)
        yield


def _differences(path: Path, about: dict[str, Any]) -> list[str]:
    """The keys whose values differ from those in the file."""
    try:
        known = json.loads(path.read_bytes())
        return [key for key in known | about if known.get(key) != json.loads(json.dumps(about.get(key)))]
    except (ValueError, TypeError, AttributeError):
        return ["content"]


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
    for file, results in files.items():
        for result in results:
            size = result.stamp["size"]
            for key, called in (MUST_AGREE | IF_KNOWN).items():
                value = result.stamp.get(key)
                if key in IF_KNOWN and value in (None, OWN_CHOICE):
                    continue
                known_file, first = known.setdefault((size, key), (file, value))
                if first != value:
                    return f"{called} at {size}: {_in_words(first)} in {known_file}, {_in_words(value)} in {file}"
    return None


def _in_words(value: Any) -> str:
    """Of many names the first."""
    return shortened(value) if isinstance(value, list) else str(value)


def remarks(files: Mapping[str, Sequence[Result]]) -> list[str]:
    """Returns what a reader must know to compare results of these files, in sentences."""
    found, all_sizes = [], {result.stamp["size"] for results in files.values() for result in results}
    labels = {file: {result.stamp[LABELS] for result in results} for file, results in files.items()}
    if unknown := [file for file, of_file in labels.items() if None in of_file]:
        found.append(
            f"how often each class occurs in {', '.join(unknown)} is not known; figures compare if it is as elsewhere"
        )
    free = [file for file, of_file in labels.items() if OWN_CHOICE in of_file]
    if free and len(set.union(*labels.values()) - {None}) > 1:
        found.append(f"{', '.join(free)}: the model was asked for no class, and the others were")
    if any(size.startswith("own") for size in all_sizes):
        found.append("own: samples of many sizes, which may be other sizes in another file")
    found += [
        f"{size} is not in {', '.join(lacking)}; compare what has the same size"
        for size in sorted(all_sizes)
        if (lacking := [file for file, results in files.items() if size not in {r.stamp["size"] for r in results}])
    ]
    found += _shared_seeds([result.stamp for results in files.values() for result in results])
    return found


def _shared_seeds(stamps: Sequence[Mapping[str, Any]]) -> list[str]:
    """Different seeds of one model, some of whose images have the same noise."""
    seeds = {(s.get("model_sha256"), s["seed"], s["num"]) for s in stamps if s.get("seeds") == "seed + index"}
    for model, seed, number in sorted(seeds, key=str):
        if others := [
            other for other_model, other, _ in seeds if other_model == model and seed < other < seed + number
        ]:
            return [
                f"the seeds {seed} and {others[0]} are less than {number} apart, so some images have the same noise: "
                "these samples are not independent"
            ]
    return []

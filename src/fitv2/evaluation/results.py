"""Results with stamps that say how they came about; only results of equal stamps are compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..atomic import write_text

FORMAT = 1
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
    "labels": "choice of labels",
    "seeds": "choice of seeds",
}


@dataclass(frozen=True)
class Result:
    """Figures of samples of one size. stamp: how they came about; scores, real, notes: see `suite.measure`."""

    stamp: dict[str, Any]
    scores: dict[str, Any]
    real: dict[str, Any]
    notes: list[str]

    @property
    def name(self) -> str:
        """What tells it from others of the same run."""
        guidance = self.stamp.get("sampling", {}).get("guidance")
        return self.stamp["size"] + ("" if guidance is None else f" at {guidance:g}")


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
            raise ValueError(f"format {content['format']}, and this version reads {FORMAT}")
        results = [Result(**result) for result in content["results"]]
        if any(missing := (MUST_AGREE.keys() | {"size"}) - result.stamp.keys() for result in results):
            raise ValueError(f"stamps without {', '.join(sorted(missing))}")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no result of fitv2 evaluate ({error})") from None
    return results


def difference(files: dict[str, list[Result]]) -> str | None:
    """In words, the first thing in which results of these files are not comparable; None where all are."""
    first_file, *others = files
    sizes = {file: sorted({result.stamp["size"] for result in results}) for file, results in files.items()}
    for other in others:
        if sizes[other] != sizes[first_file]:
            return f"sizes: {', '.join(sizes[first_file])} in {first_file}, {', '.join(sizes[other])} in {other}"
    firsts: dict[str, tuple[str, Result]] = {}
    for file, results in files.items():
        for result in results:
            size = result.stamp["size"]
            known_file, known = firsts.setdefault(size, (file, result))
            for key, called in MUST_AGREE.items():
                if known.stamp[key] != result.stamp[key]:
                    return f"{called} at {size}: {known.stamp[key]} in {known_file}, {result.stamp[key]} in {file}"
    return None

"""Results of evaluations as tables for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .output import show_table

if TYPE_CHECKING:
    from ..evaluation.results import Result

# Figures that are shown in percent.
PERCENT = ("precision", "recall", "coverage", "accuracy")
MOST_CLASSES = 20
# The width of a column where no terminal limits it.
WIDTH = 25
Figures = Mapping[str, Any]


def show_results(files: Mapping[str, Sequence[Result]]) -> None:
    """Prints a column for each result, below its file if there are several; then what must be said about them."""
    from ..evaluation.results import titles

    columns = [(file, result) for file, results in files.items() for result in results]
    if len(files) > 1:  # What is to be compared stands together.
        columns.sort(key=lambda column: column[1].name)
    names = [f"{file}\n{result.name}" if len(files) > 1 else result.name for file, result in columns]
    results = [result for _, result in columns]
    show_table(["", *names], rows(results, titles(results)), words=[""], width=WIDTH * (len(columns) + 1))
    print("\n".join(lines_below(results)))


def rows(results: Sequence[Result], keys: Mapping[str, str]) -> Iterator[list[str]]:
    """Yields title and cells: how samples were compared, every figure, what real images score, and the classes."""
    yield ["protocol", *(result.stamp["protocol"] for result in results)]
    yield ["samples", *(number(result.stamp["num"]) for result in results)]
    yield ["real images", *(number(result.stamp["reference_count"]) or "statistics" for result in results)]
    if keys:
        yield ["with all images", *[""] * len(results)]
    for key, title in keys.items():
        yield [f"  {title}", *(cell(result.scores, result.real, key) for result in results)]
    for judge in judges(results):
        yield from accuracy_rows(results, judge)
    equal = {key: title for key, title in keys.items() if any(key in result.equal for result in results)}
    if equal:
        yield ["at equal numbers", *(number(result.real.get("drawn")) or "-" for result in results)]
    for key, title in equal.items():
        yield [f"  {title}", *(drawn_cell(result.equal, key) for result in results)]
        yield ["    of real images", *(drawn_cell(result.real, key) for result in results)]


def number(count: int | None) -> str:
    """A number of images; empty for none."""
    return f"{count:,}" if count else ""


def judges(results: Sequence[Result]) -> list[str]:
    """Returns what recognises classes; accuracies by different judges are not comparable."""
    return list(dict.fromkeys(result.scores["accuracy_by"] for result in results if "accuracy_by" in result.scores))


def accuracy_rows(results: Sequence[Result], judge: str) -> Iterator[list[str]]:
    """Yields the accuracy by a judge, and that of each class, in percent and with that of real images."""
    judged = [result if result.scores.get("accuracy_by") == judge else None for result in results]

    def cells(read: Callable[[Figures], float | None]) -> list[str]:
        return ["-" if result is None else percent(read(result.scores), read(result.real)) for result in judged]

    yield [f"accuracy by {judge}", *cells(lambda f: f.get("accuracy"))]
    names = dict.fromkeys(name for result in judged if result for name in result.scores.get("accuracy_per_class", {}))
    for name in list(names)[:MOST_CLASSES]:
        yield [f"  {name}", *cells(lambda f, name=name: f.get("accuracy_per_class", {}).get(name))]


def cell(scores: Figures, real: Figures, key: str) -> str:
    """A figure, its standard error or deviation, and that of all real images if it does not depend on numbers."""
    if key in PERCENT:
        return percent(scores.get(key))
    if key not in scores:
        return "-"
    # Of few images, the classifier score is of one part.
    spread = scores.get(f"{key}_error") or scores.get(f"{key}_std")
    slash = f" / {real[key]:.4g}" if key in real and f"{key}_range" not in real else ""
    return f"{scores[key]:.4g}" + (f" ± {spread:.2g}" if spread else "") + slash


def percent(value: float | None, real: float | None = None) -> str:
    """A fraction in percent, after a slash that of real images."""
    if value is None:
        return "-"
    return f"{100 * value:.1f}" + ("" if real is None else f" / {100 * real:.1f}") + " %"


def drawn_cell(drawn: Figures, key: str) -> str:
    """Mean and range of the draws."""
    if f"{key}_range" not in drawn:
        return "-"
    factor, unit = (100, " %") if key in PERCENT else (1, "")
    mean, low, high = (f"{factor * value:.3g}" for value in (drawn[key], *drawn[f"{key}_range"]))
    return f"{mean} ({low} to {high}){unit}"


def lines_below(results: Sequence[Result]) -> Iterator[str]:
    """Yields what was compared, what the signs mean, and notes with the sizes that they are about."""
    from ..evaluation.comparison import DRAWS, VOTE

    stamp = results[0].stamp
    yield f"against {stamp['reference']}, seen by {stamp['extractor']} ({stamp['resize']})"
    yield "±: standard error of a kernel distance, else standard deviation over parts; after the slash: real images"
    if any("sampling" in result.stamp for result in results):
        yield (
            "columns: the --size of the samples and the guidance scale; own: each sample has one of the sizes that its "
            "class had in training"
        )
    if any(result.equal for result in results):
        yield (
            "with all images: all samples are compared with all real images, as in papers; most metrics then depend on "
            "the numbers of images, so compare them only with results from the same numbers of images"
        )
        yield (
            f"at equal numbers: mean and range over {DRAWS} draws; in each draw, that many samples, and as many real "
            "images, are compared with the same set of as many other real images, by class if the samples are; compare "
            "the samples with real images by these rows"
        )
    if VOTE in judges(results):
        yield f"accuracy by {VOTE}: the requested class is the most frequent one among the nearest by their features"
    elif judges(results):
        yield f"accuracy: samples that {' or '.join(judges(results))} recognises as the requested class"
    notes: dict[str, list[str]] = {}
    for result in results:
        for note in result.notes:
            notes.setdefault(note, []).append(result.name)
    for note, names in notes.items():
        yield f"Note ({', '.join(dict.fromkeys(names))}): {note}"

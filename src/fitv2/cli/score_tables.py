"""Results of evaluations as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ..evaluation.results import Result

SHARES = ("precision", "recall", "coverage", "accuracy")
OTHERS = ("precision", "recall", "density", "coverage", "accuracy")
MOST_CLASSES = 20
# Of a column, where the output is no terminal.
WIDTH = 20


def show_results(files: Mapping[str, Sequence[Result]]) -> None:
    """Prints a column for each result, of several files with the file above it; then what has to be said of them."""
    columns = [(file, result) for file, results in files.items() for result in results]
    if len(files) > 1:  # What is to be compared stands together.
        columns.sort(key=lambda column: column[1].name)
    results = [result for _, result in columns]
    console = Console(markup=False, emoji=False, highlight=False)  # A name means nothing else.
    console.width = max(console.width, WIDTH * (len(columns) + 1))
    table = Table(box=None)
    table.add_column("")
    for file, result in columns:
        table.add_column(f"{file}\n{result.name}" if len(files) > 1 else result.name, justify="right", overflow="fold")
    for title, cells in rows(results):
        table.add_row(title, *cells)
    console.print(table)
    for line in lines_below(results):
        console.print(line, soft_wrap=True)


def rows(results: Sequence[Result]) -> Iterator[tuple[str, list[str]]]:
    """Title and cells: how samples were compared, every figure that one of them has, classes below."""
    yield "protocol", [result.stamp["protocol"] for result in results]
    yield "pictures", [str(result.stamp["num"]) for result in results]
    yield "real pictures", [str(result.stamp["reference_count"] or "statistics") for result in results]
    for key, title in shown(results).items():
        yield title, [cell(result.scores, result.real, key) for result in results]
    classes = [result.scores.get("accuracy_per_class", {}) for result in results]
    for name in list(dict.fromkeys(name for of_result in classes for name in of_result))[:MOST_CLASSES]:
        real = [result.real.get("accuracy_per_class", {}) for result in results]
        yield f"  {name}", [share(own.get(name), of_real.get(name)) for own, of_real in zip(classes, real, strict=True)]


def shown(results: Sequence[Result]) -> dict[str, str]:
    """Key and title of every figure that one of them has."""
    from ..evaluation.results import titles

    return titles(results) | {key: key for key in OTHERS if any(key in result.scores for result in results)}


def cell(scores: Mapping[str, Any], real: Mapping[str, Any], key: str) -> str:
    """A figure, its deviation, and what real pictures reach."""
    if key in SHARES:
        return share(scores.get(key), real.get(key))
    if key not in scores:
        return "-"
    # Of few pictures, the classifier score is of one part.
    spread = f" ± {scores[f'{key}_std']:.2g}" if scores.get(f"{key}_std") else ""
    return f"{scores[key]:.4g}{spread}" + (f" / {real[key]:.4g}" if key in real else "")


def share(value: float | None, real: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" + ("" if real is None else f" / {100 * real:.1f}") + " %"


def lines_below(results: Sequence[Result]) -> Iterator[str]:
    """What was compared, what the signs mean, and notes with the sizes that they are about."""
    stamp = results[0].stamp
    yield f"against {stamp['reference']}, seen by {stamp['extractor']} ({stamp['resize']})"
    signs = []
    if any(result.scores.get(f"{key}_std") for result in results for key in shown(results)):
        signs.append("±: deviation over subsets")
    if any(key in result.real for result in results for key in shown(results)):
        signs.append(f"behind /: real pictures{drawn_words(results)}")
    judges = dict.fromkeys(result.scores["accuracy_by"] for result in results if "accuracy_by" in result.scores)
    signs += [f"accuracy: share of the class asked for, by {judge}" for judge in judges]
    if signs:
        yield "; ".join(signs)
    notes: dict[str, list[str]] = {}
    for result in results:
        for note in result.notes:
            notes.setdefault(note, []).append(result.name)
    for note, names in notes.items():
        yield f"Note ({', '.join(dict.fromkeys(names))}): {note}"


def drawn_words(results: Sequence[Result]) -> str:
    """How many real pictures the figures behind the stroke are of, where they were set against others."""
    numbers = dict.fromkeys(result.real["drawn"] for result in results if "drawn" in result.real)
    if not numbers:
        return ""
    words = " or ".join(map(str, numbers))
    return f", of distances and neighbours {words} at random against all others, of known classes as many as samples"

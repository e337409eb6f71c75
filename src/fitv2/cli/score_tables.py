"""Results of evaluations as tables for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ..evaluation.results import Result

SHARES = ("precision", "recall", "coverage", "accuracy")
OTHERS = ("precision", "recall", "density", "coverage")
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
    """Title and cells: how samples were compared, every figure, what real images reach, and the classes.

    Accuracies by different judges are not comparable, so each judge has its own rows.
    """
    yield "protocol", [result.stamp["protocol"] for result in results]
    yield "pictures", [str(result.stamp["num"]) for result in results]
    yield "real pictures", [str(result.stamp["reference_count"] or "statistics") for result in results]
    for key, title in shown(results).items():
        yield title, [cell(result.scores, result.real, key) for result in results]
    judges = dict.fromkeys(result.scores["accuracy_by"] for result in results if "accuracy_by" in result.scores)
    for judge in judges:
        judged = [result if result.scores.get("accuracy_by") == judge else None for result in results]
        title = "accuracy" if len(judges) == 1 else f"accuracy by {judge}"
        yield title, [share_of(result, lambda figures: figures.get("accuracy")) for result in judged]
        classes = (name for result in judged if result for name in result.scores.get("accuracy_per_class", {}))
        for name in list(dict.fromkeys(classes))[:MOST_CLASSES]:
            read = partial(class_share, name)
            yield f"  {name}", [share_of(result, read) for result in judged]
    yield from equal_rows(results)


def equal_rows(results: Sequence[Result]) -> Iterator[tuple[str, list[str]]]:
    """Samples and real images against the same real images, equally many of each: mean and range of the draws."""
    titles = {key: title for key, title in shown(results).items() if any(key in result.equal for result in results)}
    if not titles:
        return
    yield "at equal numbers", [str(result.real.get("drawn", "-")) for result in results]
    for key, title in titles.items():
        yield f"  {title}", [drawn_cell(result.equal, key) for result in results]
        yield "    of real pictures", [drawn_cell(result.real, key) for result in results]


def drawn_cell(figures: Mapping[str, Any], key: str) -> str:
    if f"{key}_range" not in figures:
        return "-"
    mean, low, high = (f"{scaled(value, key):.3g}" for value in (figures[key], *figures[f"{key}_range"]))
    return f"{mean} ({low} to {high})" + (" %" if key in SHARES else "")


def scaled(value: float, key: str) -> float:
    """Shares are shown in percent."""
    return 100 * value if key in SHARES else value


def class_share(name: str, figures: Mapping[str, Any]) -> float | None:
    return figures.get("accuracy_per_class", {}).get(name)


def share_of(result: Result | None, read: Callable[[Mapping[str, Any]], float | None]) -> str:
    return "-" if result is None else share(read(result.scores), read(result.real))


def shown(results: Sequence[Result]) -> dict[str, str]:
    """Key and title of every figure but the accuracy that one of them has."""
    from ..evaluation.results import titles

    others = {key: key for key in OTHERS if any(key in result.scores for result in results)}
    return titles(results) | others


def cell(scores: Mapping[str, Any], real: Mapping[str, Any], key: str) -> str:
    """A figure, its standard error or deviation, and what all real images reach where numbers do not matter."""
    if key in SHARES:
        return share(scores.get(key), None)
    if key not in scores:
        return "-"
    # Of few images, the classifier score is of one part.
    spread = scores.get(f"{key}_error") or scores.get(f"{key}_std")
    return f"{scores[key]:.4g}" + (f" ± {spread:.2g}" if spread else "") + of_all_real(real, key)


def of_all_real(real: Mapping[str, Any], key: str) -> str:
    return f" / {real[key]:.4g}" if key in real and f"{key}_range" not in real else ""


def share(value: float | None, real: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" + ("" if real is None else f" / {100 * real:.1f}") + " %"


def lines_below(results: Sequence[Result]) -> Iterator[str]:
    """What was compared, what the signs mean, and notes with the sizes that they are about."""
    from ..evaluation.suite import DRAWS

    stamp = results[0].stamp
    yield f"against {stamp['reference']}, seen by {stamp['extractor']} ({stamp['resize']})"
    signs = []
    if any(result.scores.get(f"{key}_error") for result in results for key in shown(results)):
        signs.append("± of a kernel distance: standard error")
    if any(result.scores.get(f"{key}_std") for result in results for key in shown(results)):
        signs.append("± of a score: standard deviation over its parts or subsets")
    if any(result.real for result in results):
        signs.append("after the slash: real images")
    if any(result.equal for result in results):
        signs.append(
            f"at equal numbers: mean and range of {DRAWS} draws of that many samples, and of as many other real "
            "images, each against that many real images, by class where samples are"
        )
    judges = dict.fromkeys(result.scores["accuracy_by"] for result in results if "accuracy_by" in result.scores)
    signs += [f"accuracy: images recognised as the requested class, by {judge}" for judge in judges]
    if signs:
        yield "; ".join(signs)
    notes: dict[str, list[str]] = {}
    for result in results:
        for note in result.notes:
            notes.setdefault(note, []).append(result.name)
    for note, names in notes.items():
        yield f"Note ({', '.join(dict.fromkeys(names))}): {note}"

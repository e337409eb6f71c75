"""Results of evaluations as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ..evaluation.results import Result

# Where the output is no terminal, tables are as wide as they need.
WIDTH = 110
SHARES = ("precision", "recall", "density", "coverage", "accuracy")
MOST_CLASSES = 20


def show_results(files: Mapping[str, Sequence[Result]]) -> None:
    """Prints all results, of several files with the file in front, and below the first ones how they came about."""
    console = Console(markup=False, emoji=False, highlight=False)  # A name means nothing else.
    console.width = max(console.width, WIDTH)
    rows = [(file, result) for file, results in files.items() for result in results]
    if len(files) > 1:  # What is to be compared stands together.
        rows.sort(key=lambda row: row[1].name)
    table = Table(box=None)
    for column in (["file"] if len(files) > 1 else []) + ["size", "protocol", "real"]:
        table.add_column(column, overflow="fold")
    shown = columns([result for _, result in rows])
    for title in shown.values():
        table.add_column(title, justify="right", overflow="fold")
    for file, result in rows:
        told = [file] if len(files) > 1 else []
        known = result.stamp["reference_count"] or "statistics"
        told += [result.name, result.stamp["protocol"], str(known)]
        table.add_row(*told, *(cell(result.scores, key) for key in shown))
    for real in distinct_real(rows):
        blank = [""] if len(files) > 1 else []
        table.add_row(*blank, "real pictures", "", "", *(cell(real, key) for key in shown))
    console.print(table)
    for line in lines_below([result for _, result in rows]):
        console.print(line, soft_wrap=True)


def columns(results: Sequence[Result]) -> dict[str, str]:
    """Keys of the figures that there are, and their titles."""
    titles = {"fd": "{}", "sfd": "s{}", "kid": "KID", "inception_score": "IS"} | {share: share for share in SHARES}
    called = " / ".join(dict.fromkeys(result.stamp["score"] for result in results))
    there = [key for key in titles if any(key in result.scores for result in results)]
    return {key: titles[key].format(called) for key in there}


def cell(figures: Mapping[str, Any], key: str) -> str:
    if key not in figures:
        return "-"
    if key == "accuracy" or (key in SHARES and key != "density"):
        return f"{100 * figures[key]:.1f} %"
    if f"{key}_std" in figures:
        return f"{figures[key]:.4g} ± {figures[f'{key}_std']:.2g}"
    return f"{figures[key]:.4g}"


def distinct_real(rows: Sequence[tuple[str, Result]]) -> list[Mapping[str, Any]]:
    """The figures of the real pictures, those that several results share only once."""
    found: list[Mapping[str, Any]] = []
    for _, result in rows:
        if result.real and result.real not in found:
            found.append(result.real)
    return found


def lines_below(results: Sequence[Result]) -> list[str]:
    """How the figures came about, accuracy by class, and notes."""
    stamp = results[0].stamp
    lines = [
        f"{stamp['num']} pictures against {stamp['reference']}, seen by {stamp['extractor']} ({stamp['resize']}); "
        "± is the deviation over subsets."
    ]
    for result in results:
        per_class = list(result.scores.get("accuracy_per_class", {}).items())[:MOST_CLASSES]
        if per_class:
            real = result.real.get("accuracy_per_class", {})
            told = (f"{n} {100 * s:.1f}" + (f" / {100 * real[n]:.1f}" if n in real else "") for n, s in per_class)
            lines.append(
                f"{result.name}: accuracy in % by {result.scores['accuracy_by']}, samples / real: {', '.join(told)}"
            )
    notes: dict[str, list[str]] = {}
    for result in results:
        for note in result.notes:
            notes.setdefault(note, []).append(result.name)
    return lines + [f"Note ({', '.join(dict.fromkeys(names))}): {note}" for note, names in notes.items()]

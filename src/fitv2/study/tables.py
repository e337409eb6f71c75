"""The tables of a study, made from its records: every cell a text, every row a variant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import fmean

from .claims import UNITS, cost_to_reach, difference, in_words, is_bound
from .conditions import Condition
from .definition import Study
from .real import Real
from .record import Record, Records
from .statistics import Estimate, estimate

TITLES = {"distance": "Frechet distance", "recognised": "Share recognised"}
OTHER_SCORES = ("kid", "precision", "recall", "density", "coverage")
REAL = "real pictures"
REAL_CAPTION = (
    "The row of real pictures has the mean and the range of ten draws: at random as many as samples, by class as "
    "these, against all others. It says nothing of other data."
)
Row = list[str]


def markdown(head: Sequence[str], rows: Sequence[Row], texts: int = 1) -> Iterator[str]:
    """Lines of a table: the first columns, so many, at the left, the others at the right."""
    for cells in (list(head), ["---"] * texts + ["---:"] * (len(head) - texts), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def over_seeds(runs: dict[int, Record], read: Callable[[Record], float | None]) -> Estimate | None:
    """Of what `read` gives for each seed; None is left out."""
    return estimate([value for value in map(read, runs.values()) if value is not None])


def seeds_cell(runs: dict[int, Record]) -> str:
    """How many runs there are, and what went wrong."""
    counts = {
        "diverged": sum(r.diverged for r in runs.values()),
        "without finite pictures": sum(r.failed and not r.diverged for r in runs.values()),
        "steps skipped": sum(r.skipped for r in runs.values()),
    }
    return ", ".join([str(len(runs)), *(f"{count} {what}" for what, count in counts.items() if count)])


def condition_names(records: Records) -> list[str]:
    """Of the end, in their order, wherever any run has them."""
    return list(dict.fromkeys(c for runs in records.values() for record in runs.values() for c in record.final))


def final_rows(records: Records, score: str) -> list[Row]:
    """The final score under each condition, with its interval."""
    return [
        [
            variant,
            seeds_cell(runs),
            *(in_words(over_seeds(runs, lambda record, c=c: record.score(c, score))) for c in condition_names(records)),
        ]
        for variant, runs in records.items()
    ]


def real_row(records: Records, real: Real, of_study: Sequence[Condition], score: str) -> Row:
    """What real pictures score under the conditions of `final_rows`: see `range_in_words`."""
    places = {condition.name: real.places[condition.place] for condition in of_study}
    shown = [places[name] for name in condition_names(records)]
    if score == "recognised":
        return [REAL, "-", *(in_words(place.recognised and estimate([place.recognised])) for place in shown)]
    return [REAL, "-", *(range_in_words([scores[score] for scores in place.draws]) for place in shown)]


def real_other_row(real: Real, condition: Condition) -> Row:
    """What real pictures score in `other_rows`."""
    draws = real.places[condition.place].draws
    return [REAL, *(range_in_words([scores[name] for scores in draws]) for name in OTHER_SCORES)]


def range_in_words(values: Sequence[float]) -> str:
    """Mean and range of draws of the same real pictures, which depend on each other: no interval can be had."""
    mean, low, high = (f"{value:#.3g}".rstrip(".") for value in (fmean(values), min(values), max(values)))
    return f"{mean} ({low} to {high})"


def other_rows(records: Records, condition: str) -> list[Row]:
    """All further scores of the end under one condition."""

    def cell(runs: dict[int, Record], name: str) -> str:
        return in_words(over_seeds(runs, lambda record: record.score(condition, name)))

    return [[variant, *(cell(runs, name) for name in OTHER_SCORES)] for variant, runs in records.items()]


def difference_rows(records: Records, first: str, score: str) -> list[Row]:
    """The same less that of the first variant, seed by seed."""
    return [
        [variant, *(difference(records, variant, first, c, score).text("+") for c in condition_names(records))]
        for variant in records
        if variant != first
    ]


def steps_of(runs: Iterable[Record]) -> list[int]:
    """Of their points, in order."""
    return sorted({point.step for record in runs for point in record.points})


def curve_rows(records: Records, steps: Sequence[int]) -> list[Row]:
    """The distance at these steps; "-" where there is no point."""

    def at(record: Record, step: int) -> float | None:
        return next((point.scores["distance"] for point in record.points if point.step == step), None)

    return [
        [variant, *(in_words(over_seeds(runs, lambda record, s=step: at(record, s))) for step in steps)]
        for variant, runs in records.items()
    ]


def reach_rows(records: Records, first: str) -> list[Row]:
    """What each variant took until its curve was down to the last point of the first variant's, seed by seed."""
    return [[variant, *(reach_cell(records, first, variant, unit) for unit in UNITS)] for variant in records]


def reach_cell(records: Records, first: str, variant: str, unit: str) -> str:
    targets = {seed: record.last.scores["distance"] for seed, record in records[first].items() if not record.failed}
    runs = [(records[variant][seed], targets[seed]) for seed in records[variant].keys() & targets.keys()]
    taken = [None if record.failed else cost_to_reach(record, target, unit) for record, target in runs]
    reached = [cost / (1e12 if unit == "operations" else 1) for cost in taken if cost is not None]
    if not reached:
        return "not reached" if runs else "-"
    missed = f", not reached with {len(taken) - len(reached)} of {len(taken)} seeds" * (len(reached) < len(taken))
    early = any(is_bound(record, cost, unit) for (record, _), cost in zip(runs, taken, strict=True) if cost is not None)
    return "at most " * early + in_words(estimate(reached)) + missed


COST_HEAD = (
    "variant",
    "million parameters",
    "GFLOP a step",
    "TFLOP in all",
    "tokens a step",
    "pictures a step",
    "waste in packs",
    "waste if padded",
    "evaluations a picture",
    "seconds a step",
    "CPU seconds a step",
)


def cost_rows(records: Records) -> list[Row]:
    """What a variant takes, by formula and as measured."""
    return [cost_row(variant, runs) for variant, runs in records.items() if runs]


def cost_row(variant: str, runs: dict[int, Record]) -> Row:
    def mean(read: Callable[[Record], float]) -> float:
        return over_seeds(runs, read).mean

    trained = [record for record in runs.values() if record.points]
    of_a_step = [
        in_words(estimate([getattr(r.last, unit) / r.last.step for r in trained]))
        for unit in ("seconds", "cpu_seconds")
    ]
    return [
        variant,
        f"{mean(lambda r: r.cost['parameters']) / 1e6:.3f}",
        f"{mean(lambda r: r.cost['flops_per_step']) / 1e9:.4g}",
        f"{mean(lambda r: r.cost['flops_total']) / 1e12:.4g}",
        f"{mean(lambda r: r.cost['tokens_per_step']):.1f}",
        f"{mean(lambda r: r.cost['pictures_per_step']):.2f}",
        f"{100 - 100 * mean(lambda r: r.cost['real_token_share']):.2f} %",
        f"{100 - 100 * mean(lambda r: r.cost['padded_token_share']):.1f} %",
        " / ".join(str(n) for n in dict.fromkeys(next(iter(runs.values())).evaluations.values())),
        *of_a_step,
    ]


def variant_rows(study: Study) -> list[Row]:
    """What each variant is, and what it changes in the recipe that all share."""
    return [
        [name, variant.about, ", ".join(f"`{key}: {in_yaml(value)}`" for key, value in variant.set.items()) or "-"]
        for name, variant in study.variants.items()
    ]


def in_yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool | None) else str(value)

"""Results for people: tables on a terminal and the same ones in Markdown."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from rich import box
from rich.table import Table

from results import MeasuredPart, Measurement, Results

Cell = Callable[[MeasuredPart, Measurement], str]


def seconds(part: MeasuredPart, m: Measurement) -> str:
    return f"{median(m.seconds):.3g} ({min(m.seconds):.3g} to {max(m.seconds):.3g})"


COLUMNS: dict[str, Cell] = {
    "seconds (min to max)": seconds,
    "images/s": lambda part, m: f"{m.rate('images'):.3g}",
    "s/image": lambda part, m: f"{1 / m.rate('images'):.3g}",
    "tokens/s": lambda part, m: f"{m.rate('tokens'):,.0f}",
    "GFLOP/s": lambda part, m: f"{m.rate('flops') / 1e9:,.0f}",
    "of peak": lambda part, m: f"{part.share_of_peak(m):.0%}",
    "MiB": lambda part, m: f"{m.bytes / 2**20:,.0f}",
    "ratio": lambda part, m: f"{part.ratio(m):.2f}",
}
# All that is known of a matrix product.
OF_PRODUCTS = ("seconds (min to max)", "GFLOP/s")


def columns(part: MeasuredPart) -> dict[str, Cell]:
    """An image is sampled in seconds, and passes through a network in a fraction of one."""
    left_out = "images/s" if part.name == "sampling" else "s/image"
    return {title: cell for title, cell in COLUMNS.items() if title != left_out}


def rows(part: MeasuredPart) -> list[list[str]]:
    """A row of texts per contender, and one per matrix product."""
    shown = columns(part)
    contenders = [[m.name, *(cell(part, m) for cell in shown.values())] for m in part.measurements]
    products = [
        [m.name, *(cell(part, m) if title in OF_PRODUCTS else "" for title, cell in shown.items())]
        for m in part.products.values()
    ]
    return contenders + products


def table(part: MeasuredPart) -> Table:
    page = Table(title=part.title, caption=part.about, title_justify="left", caption_justify="left", box=box.SIMPLE)
    page.add_column("")
    for title in columns(part):
        page.add_column(title, justify="right", no_wrap=True)
    for row in rows(part):
        page.add_row(*row)
    return page


def markdown(results: Results) -> str:
    """A page with every table and its plot."""
    machine = [f"- {name}: {value}" for name, value in results.machine.items()]
    head = ["# Results", "", "Written by `python benchmarks/compare.py` from `results.json`; not edited by hand.", ""]
    return "\n".join([*head, *machine, *(line for part in results.parts for line in section(part))]) + "\n"


def section(part: MeasuredPart) -> list[str]:
    titles = columns(part)
    lines = [["", *titles], ["---", *["---:"] * len(titles)], *rows(part)]
    page = ["| " + " | ".join(cells) + " |" for cells in lines]
    return [
        "",
        f"## {part.title}",
        "",
        f"{part.about} Code: {part.commit}.",
        "",
        *page,
        "",
        f"![{part.title}]({part.name}.png)",
    ]

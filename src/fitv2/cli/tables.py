"""Figures of profiles as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ..messages import counted

if TYPE_CHECKING:
    from ..profiling.profile import Case, Profile

# Where the output is no terminal, tables are as wide as they need.
WIDTH = 110
FORMULA = ("tokens", "parameters", "GMAC", "GFLOP", "forward", "step", "training")
MEASURED = ("pass", "seconds", "tokens/s", "memory", "of peak")
WORDS = ("model", "image", "pass")
ABOUT_FORMULAS = """\
GMAC: multiply-accumulates of linear layers in a forward pass (the "GFLOPs" of Table I). GFLOP: two operations for
each, plus attention; a training step takes three times as many. Memory: forward, beyond the weights; step, kept for
the backward pass; training, all of it, with weights, average, gradients and AdamW's moments."""
ABOUT_MEASURING = """\
Memory: the peak beyond weights and moments, for a step with its gradients. "of peak": the GFLOP above, compared with
large matrix products measured in turn with the models, {peak:,.0f} GFLOP/s at most."""


def show_profiles(profiles: Sequence[Profile], device: str, threads: int, compiled: bool) -> None:
    """Prints what formulas say, and what was measured; threads: of a CPU; compiled: blocks of FiT and FiTv2."""
    case, console = profiles[0].case, Console(markup=False, emoji=False, highlight=False)  # A name means nothing else.
    console.width = max(console.width, WIDTH)
    images = "one image" if case.batch == 1 else f"{case.batch} images"
    table = empty(f"By formula: {images}, {'float32' if case.precision == 'fp32' else 'bf16'}", FORMULA)
    for profile in profiles:
        table.add_row(*name_and_size(profile.case), *formula_cells(profile))
    console.print(table)
    print(ABOUT_FORMULAS)
    measured = [profile for profile in profiles if profile.measured]
    if measured:
        where = f"a CPU, {counted(threads, 'thread')}" if device == "cpu" else f"a GPU ({device})"
        table = empty(f"\nMeasured on {where}{', blocks of FiT and FiTv2 compiled' if compiled else ''}", MEASURED)
        for profile in measured:
            for cells in measured_rows(profile):
                table.add_row(*name_and_size(profile.case), *cells)
        console.print(table)
        peak = max(profile.measured.peak_flops for profile in measured if profile.measured)
        print(ABOUT_MEASURING.format(peak=peak / 1e9))


def empty(title: str, columns: Sequence[str]) -> Table:
    """No rows yet. Words stand at the left, numbers at the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    for column in ("model", "image", *columns):
        table.add_column(column, overflow="fold", justify="left" if column in WORDS else "right")
    return table


def name_and_size(case: Case) -> tuple[str, str]:
    return case.subject.name, f"{case.size[0]}x{case.size[1]}"


def formula_cells(profile: Profile) -> list[str]:
    cost = profile.cost
    counts = f"{cost.parameters / 1e6:,.2f} M", f"{cost.linear_macs / 1e9:,.2f}", f"{cost.forward_flops / 1e9:,.2f}"
    return [
        str(profile.case.tokens),
        *counts,
        *map(memory, (cost.forward_bytes, cost.activation_bytes, cost.training_bytes)),
    ]


def measured_rows(profile: Profile) -> Iterator[list[str]]:
    """One for the forward pass, one for the training step."""
    for name in ("forward", "step"):
        run = getattr(profile.measured, name)
        if run is None:
            yield [name, "does not fit", "-", memory(profile.cost.training_bytes), "-"]
            continue
        share = f"{100 * run.share:.0f} %"
        yield [name, f"{run.seconds:.4f}", f"{run.tokens_per_second:,.0f}", memory(run.bytes), share]


def memory(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"

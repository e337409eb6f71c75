"""How fast fitv2 is, against the padded layout, diffusers' DiT and this device's own limit, all in one run.

    python benchmarks/compare.py --parts forward,training --repeats 5

The works of a part take turns, the matrix products that give the device's peak among them, so that a machine whose
speed drifts is unfair to none. Layouts that run the same weights on the same images first have to give the numbers of
every image alone. A CUDA device is used when there is one. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import gc
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch._dynamo import config as compiler

from contenders import Contender
from fitv2.profiling.measure import in_turn, matrix_product, most_bytes
from fitv2.system.atomic import write_text
from fitv2.system.device import choose_device
from fitv2.system.provenance import code_commit
from parts import PARTS, Build
from plots import save_plots
from report import markdown, table
from results import MeasuredPart, Measurement, Results

PRECISIONS = {"bf16": torch.bfloat16, "float32": torch.float32}
# A table wider than what a file or a pipe is taken for.
LEAST_COLUMNS = 120
SLOW = {"sampling"}


def measure(name: str, build: Build, device: torch.device, repeats: int, bar: Progress) -> MeasuredPart:
    """Times the contenders and the matrix products in turn, then takes the memory of each once."""
    torch.compiler.reset()
    gc.collect()  # Compiled blocks refer to themselves: those of the last part would stay in memory for a while.
    task = bar.add_task(name, total=None)
    part = build(device)
    products = []
    for precision, dtype in PRECISIONS.items():
        work, flops = matrix_product(dtype, device)
        products.append(Contender(f"matrix product, {precision}", work, 0, 0, flops, precision))
    everyone = [*products, *part.contenders]
    bar.update(task, total=(repeats + 2) * len(everyone))
    seconds = in_turn({one.name: one.work for one in everyone}, repeats, partial(bar.advance, task))

    def measured(one: Contender) -> Measurement:
        most = most_bytes(one.short or one.work, device)
        bar.advance(task)
        worth = {key: getattr(one, key) for key in ("name", "precision", "images", "tokens", "flops")}
        return Measurement(**worth, seconds=seconds[one.name], bytes=most)

    about = {key: getattr(part, key) for key in ("title", "about", "unit", "base")}
    return MeasuredPart(
        name=name,
        commit=code_commit() or "unknown",
        **about,
        products={one.precision: measured(one) for one in products},
        measurements=[measured(one) for one in part.contenders],
    )


# Blocks that the compiler gives up on would run eagerly and still be called compiled.
@compiler.patch(fail_on_recompile_limit_hit=True)
def compare(parts: Mapping[str, Build], device: torch.device, repeats: int, out: Path) -> Results:
    """Builds and measures one part after another, and stores the results so far after each."""
    now = machine(device)
    results = Results(machine=now, parts=kept_parts(out, now))
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        for name, build in parts.items():
            measured = measure(name, build, device, repeats, bar)
            found = {part.name: part for part in results.parts} | {name: measured}
            results = results.model_copy(update={"parts": [found[part] for part in PARTS if part in found]})
            write_text(out / "results.json", results.model_dump_json(indent=1) + "\n")
    write_pages(results, out)
    return results


def kept_parts(out: Path, now: dict[str, str]) -> list[MeasuredPart]:
    """The stored parts of the same day, device and software; others would not be comparable."""
    file = out / "results.json"
    if not file.exists():
        return []
    stored = read_results(file)
    if stored.machine != now:
        there = ", ".join(stored.machine.values())
        print(f"{file} is replaced, because it is of another day, device or software: {there}", file=sys.stderr)
        return []
    return stored.parts


def read_results(file: Path) -> Results:
    """Ends the command with a sentence if the file is damaged or missing."""
    try:
        return Results.model_validate_json(file.read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"{file} cannot be read ({str(error).splitlines()[0]}); name another --out, or delete it")


def machine(device: torch.device) -> dict[str, str]:
    """The device, the software and the date of the measurement."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    versions = [f"{package} {version(package)}" for package in ("fitv2", "torch", "diffusers")]
    software = ", ".join([*versions, f"Python {platform.python_version()}"])
    return {"device": name, "software": software, "date": datetime.now(UTC).strftime("%Y-%m-%d")}


def processor() -> str:
    """The CPU's name if Linux knows it, its instructions and the threads in use."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, threads: {torch.get_num_threads()}"


def write_pages(results: Results, out: Path) -> None:
    """Writes the page with the tables, and the plots."""
    write_text(out / "README.md", markdown(results))
    save_plots(results, out)


def chosen(text: str) -> list[str]:
    """The names of --parts."""
    names = list(PARTS) if text == "all" else text.split(",")
    for name in names:
        if name not in PARTS:
            raise argparse.ArgumentTypeError(f"there is no part {name!r}; the parts are {', '.join(PARTS)}, or all")
    return names


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"at least one turn, not {text!r}")
    return int(text)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parts = "\n".join(f"  {name:10}{(build.__doc__ or '').splitlines()[0]}" for name, build in PARTS.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"parts:\n{parts}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = [name for name in PARTS if name not in SLOW]
    told = "names with commas between them, or all; by default all but sampling"
    parser.add_argument("--parts", type=chosen, default=usual, help=told)
    parser.add_argument("--repeats", type=positive, default=5, help="turns that are timed, after one that is not")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent / "results",
        help="folder for results.json, README.md and the plots; parts of the same day, device and software are kept; "
        "default benchmarks/results",
    )
    parser.add_argument("--json", action="store_true", help="print results.json instead of the tables")
    parser.add_argument("--plot-only", action="store_true", help="measure nothing, draw again from results.json")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    args = arguments(given)
    if args.plot_only:
        results = read_results(args.out / "results.json")
        write_pages(results, args.out)
    else:
        parts = {name: PARTS[name] for name in args.parts}
        results = compare(parts, choose_device(), args.repeats, args.out)
    if args.json:
        print(results.model_dump_json(indent=1))
        return
    console = Console()
    console.width = max(console.width, LEAST_COLUMNS)
    for part in results.parts:
        console.print(table(part))


if __name__ == "__main__":
    main()

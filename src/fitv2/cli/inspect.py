"""`fitv2 inspect`: what a preparation made of the images, as text, table and plots."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from ..messages import counted, shortened

if TYPE_CHECKING:
    from ..prepare.inspection import Inspection

PLOTS = "plots.png"
BAR = 40
MOST_CLASSES = 20


def inspect(
    folder: Annotated[Path, typer.Argument(help="what 'fitv2 prepare' made")],
    budget: Annotated[
        int | None, typer.Option(min=1, help="tokens per pack; default: ten times the longest image")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="for the table and the plots; default: FOLDER-inspected")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="also compare every shard with its hash, and look for NaN and infinity")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON report instead of text")] = False,
) -> None:
    """Show what became of each image: sizes, tokens, what was cropped, what was skipped and why.

    [bold]Examples[/bold]

      fitv2 inspect prepared

      fitv2 inspect prepared --budget 16384 --verify
    """
    from ..data.prepared import read_dataset
    from ..drawing import write_page
    from ..prepare import inspection as inspecting
    from ..prepare.plots import bars, points
    from .progress import image_progress

    if verify:
        with image_progress("verifying", len(read_dataset(folder)[1]["shards"])) as done:
            refuse_damage(folder, *inspecting.verify(folder, done))
    named = folder if folder.name else folder.resolve()  # "." has no name.
    out = out or named.with_name(f"{named.resolve().name}-inspected")
    refuse_foreign(out, {inspecting.TABLE, PLOTS})
    inspection = inspecting.inspect(folder, out)
    figures = inspecting.summary(inspection) | {"packing": inspecting.packing(folder, budget)}
    write_page(
        out / PLOTS,
        [
            points("sizes in pixels", {"before": inspection.sizes(), "after": inspection.sizes("new_")}),
            bars("width / height", figures["aspects"]),
            bars("tokens", figures["token_counts"]),
            bars("fraction lost by cropping", figures["cropped"]),
            bars("classes", figures["classes"] or {"without classes": len(inspection.labels)}),
            bars("skipped", figures["skipped_by_reason"] or {"none": 0}),
        ],
    )
    figures |= {"table": str(out / inspecting.TABLE), "plots": str(out / PLOTS)}
    if verify:
        figures["verified"] = True
    # Names of files and folders may hold bytes that no terminal can show.
    shown = json.dumps(figures) if as_json else "\n".join(text(folder, inspection, figures))
    print(shown.encode(errors="replace").decode())


def refuse_damage(folder: Path, damaged: list[str], not_finite: list[str]) -> None:
    """Raises UserError where shards are damaged or hold numbers that are not finite."""
    cure = "the same fitv2 prepare as before makes them again"
    if damaged:
        shards = counted(len(damaged), "shard")
        raise UserError(
            f"{shards} of {folder} {'is' if len(damaged) == 1 else 'are'} not as written: "
            f"{shortened(damaged, MOST_CLASSES)}; {cure}"
        )
    if not_finite:
        names = shortened(not_finite, MOST_CLASSES)
        raise UserError(
            f"{counted(len(not_finite), 'image')} of {folder} {'has' if len(not_finite) == 1 else 'have'} "
            f"latents that are not finite (NaN or infinity): {names}; {cure}, and stops if the autoencoder is broken"
        )


def refuse_foreign(out: Path, own: set[str]) -> None:
    """Raises UserError for a folder that holds anything but an earlier inspection: nothing of others is overwritten."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    others = sorted(path.name for path in out.iterdir() if path.name not in own) if out.exists() else []
    if others:
        raise UserError(f"{out} holds other files, such as {others[-1]}; choose another --out")


def text(folder: Path, inspection: Inspection, figures: dict[str, Any]) -> Iterator[str]:
    preparation, low_to_high = inspection.preparation, "{:g} to {:g}, median {:g}"
    what = f"latents of {preparation.autoencoder}" if preparation.autoencoder else "pixels"
    images, files = counted(figures["images"], "image"), counted(figures["files"], "file")
    yield f"{folder}: {images} of {files} as {what}, {figures['bytes']:,} bytes"
    yield f"  {counted(len(figures['classes']), 'class', 'classes') if figures['classes'] else 'no classes'}"
    yield f"  at most {preparation.max_tokens} tokens of {preparation.patch}x{preparation.patch} pixels; " + ", ".join(
        f"{count} {variant}" for variant, count in figures["variants"].items()
    )
    for name in ("height", "new_height", "width", "new_width", "scale", "tokens"):
        low, median, high = figures[name]
        yield f"  {name.replace('_', ' '):12} {low_to_high.format(low, high, median)}"
    duplicates = counted(figures["duplicates"], "duplicate")
    yield f"  {figures['stretched_visibly']} stretched by over 5 %; {duplicates}"
    pack = figures["packing"]
    budget, real = counted(pack["budget"], "token"), 100 * pack["packing_efficiency"]
    yield f"  packs of {budget}: {pack['packs']} an epoch, {real:.2f} % real tokens"
    if "verified" in figures:
        yield f"  all of {counted(len(inspection.dataset['shards']), 'shard')} as written, every number finite"
    shown = {"width / height": "aspects", "tokens": "token_counts", "fraction lost by cropping": "cropped"}
    for title, name in (shown | {"skipped": "skipped_by_reason", "classes": "classes"}).items():
        if any(figures[name].values()):
            yield title
            yield from histogram(figures[name])
    yield f"Every file is in {figures['table']}, the plots in {figures['plots']}"


def histogram(counts: dict[str, int]) -> Iterator[str]:
    """Yields a bar of characters per entry; of many, the first ones."""
    longest = max(counts.values()) or 1
    for name, count in list(counts.items())[:MOST_CLASSES]:
        # File names may hold bytes that no terminal can show.
        told = name.encode(errors="replace").decode()
        yield f"  {told:>22} {count:>8} {'#' * round(BAR * count / longest)}"
    if len(counts) > MOST_CLASSES:
        yield f"  {'and more':>22} {sum(list(counts.values())[MOST_CLASSES:]):>8}"

"""`fitv2 inspect`: what a preparation made of the images, as text, table and plots."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from ..messages import counted, shortened
from .options import Json, out_option
from .output import show

if TYPE_CHECKING:
    from ..prepare.inspection import Inspection

PLOTS = "plots.png"
BAR = 40
MOST_CLASSES = 20
# Of the counts, by their names among the figures; each says what is counted.
TITLES = {
    "aspects": "images by width / height",
    "token_counts": "variants by tokens",
    "cropped": "variants by fraction cut off",
    "classes": "images by class",
    "skipped_by_reason": "skipped files",
}


def inspect(
    folder: Annotated[Path, typer.Argument(help="the output of 'fitv2 prepare'")],
    max_tokens_per_batch: Annotated[
        int | None,
        typer.Option(min=1, help="tokens per batch, as in training; default: ten times the longest image"),
    ] = None,
    out: Annotated[Path | None, out_option(help="folder for table and plots; default: FOLDER-inspected")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="also check for damage, NaN and infinity")] = False,
    as_json: Json = False,
) -> None:
    """Show what happens to each image of a data set: sizes, tokens, crops, captions, and why files are skipped.

    [bold]Examples[/bold]

      fitv2 inspect prepared
      fitv2 inspect prepared --max-tokens-per-batch 16384 --verify
    """
    from ..data.latent_shards import LatentShards
    from ..data.prepared import read_dataset
    from ..drawing import write_page
    from ..prepare import inspection as inspecting
    from ..prepare.plots import bars, points
    from ..system.atomic import remove_drafts
    from .progress import image_progress

    if verify:
        with image_progress("verifying", len(read_dataset(folder)[1]["shards"])) as done:
            damaged = inspecting.verify(folder, done)
        if damaged:
            shards, names = counted(len(damaged), "shard"), shortened(damaged, MOST_CLASSES)
            cure = "the same fitv2 prepare command as before makes them again"
            raise UserError(f"{shards} of {folder} not as written: {names}; {cure}")
    data = LatentShards(folder)
    named = folder.resolve() if folder.name in ("", "..") else folder
    out = out or named.with_name(f"{named.resolve().name}-inspected")
    own = {inspecting.TABLE, PLOTS}
    # An inspection overwrites no other files; hidden ones are of systems, and drafts of an inspection that was killed.
    there = {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.exists() else set()
    if others := sorted(there - own):
        raise UserError(f"{out} holds other files, such as {others[-1]}; choose another --out")
    remove_drafts(out)
    packed = inspecting.packing(data, max_tokens_per_batch)
    inspection = inspecting.inspect(folder, out)
    figures = inspecting.summary(inspection)
    figures |= {"packing": packed, "captions": inspecting.captions(data)}
    without = {"classes": {"without classes": len(inspection.labels)}, "skipped_by_reason": {"none": 0}}
    sizes = {"images": inspection.sizes(), "variants": inspection.sizes("new_")}
    drawn = [bars(title, figures[name] or without[name]) for name, title in TITLES.items()]
    write_page(out / PLOTS, [points("sizes in pixels", sizes), *drawn])
    figures |= {"table": str(out / inspecting.TABLE), "plots": str(out / PLOTS)}
    if verify:
        figures["verified"] = True
    show(figures, text(folder, inspection, figures), as_json)


def text(folder: Path, inspection: Inspection, figures: dict[str, Any]) -> Iterator[str]:
    """Yields the figures as lines for people."""
    preparation, pack = inspection.preparation, figures["packing"]
    what = f"latents of {preparation.autoencoder}" if preparation.autoencoder else "pixels"
    images, files = counted(figures["images"], "image"), counted(figures["files"], "file")
    yield f"{folder}: {images} of {files} as {what}, {figures['bytes']:,} bytes"
    yield f"  {counted(len(figures['classes']), 'class', 'classes') if figures['classes'] else 'no classes'}"
    yield f"  {counted(figures['duplicates'], 'duplicate')}"
    yield from (spread(figures, name) for name in ("height", "width"))
    # Training draws one of them in each epoch.
    number, crops = sum(figures["variants"].values()), figures["variants"].get("crop", 0)
    yield (
        f"{counted(number, 'variant')} of these images: {number - crops:,} resized, "
        f"{counted(crops, 'centre square')}; at most {preparation.max_tokens} tokens of "
        f"{preparation.patch}x{preparation.patch} pixels"
    )
    yield from (spread(figures, name) for name in ("new_height", "new_width", "scale", "tokens"))
    cut = sum(figures["cropped"].values()) - crops
    yield f"  of the resized images, {cut:,} lose a part, because whole tokens would stretch them by over 5 %"
    if stretched := figures["stretched_visibly"]:
        yield f"  {stretched:,} stretched by over 5 %"
    budget, full = counted(pack["budget"], "token"), 100 * pack["packing_efficiency"]
    yield f"batches of at most {budget}: {pack['packs']:,} per epoch, {full:.2f} % full on average"
    yield from caption_lines(figures["images"], figures["captions"])
    if "verified" in figures:
        yield f"  all of {counted(len(inspection.dataset['shards']), 'shard')} as written"
    for name, title in TITLES.items():
        if any(figures[name].values()):
            yield title
            yield from histogram(figures[name])
    yield f"Every file is in {figures['table']}, the plots in {figures['plots']}"


def spread(figures: dict[str, Any], name: str) -> str:
    """The smallest, largest and median value of a figure as a line for people."""
    low, median, high = figures[name]
    return f"  {name.replace('_', ' '):12} {low:g} to {high:g}, median {median:g}"


def caption_lines(images: int, captions: dict[str, Any]) -> Iterator[str]:
    """Yields what is known of captions as lines for people; nothing without captions."""
    if not captions["images"]:
        return
    number, words = counted(captions["captions"], "caption"), captions["mean_words"]
    yield f"  {captions['images']:,} of {counted(images, 'image')} with {number} of {words:g} words on average, such as"
    yield from (f"    {caption}" for caption in captions["examples"])
    for stored in captions["encoders"]:
        of = counted(stored["captions"], "caption")
        yield f"  features of {of} by {stored['encoder']}, {stored['bytes']:,} bytes"


def histogram(counts: dict[str, int]) -> Iterator[str]:
    """Yields a bar of characters per entry; of many, the first ones."""
    longest, entries = max(counts.values()) or 1, list(counts.items())
    for name, count in entries[:MOST_CLASSES]:
        yield f"  {name:>22} {count:>8} {'#' * round(BAR * count / longest)}"
    if more := entries[MOST_CLASSES:]:
        yield f"  {'and more':>22} {sum(count for _, count in more):>8}"

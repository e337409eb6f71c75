"""`fitv2 emoji`: a colour data set of drawings, made from packages of npm."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ..messages import command, counted
from .options import Json, out_option
from .output import show


def emoji(
    out: Annotated[Path, out_option(help="the folder to write or complete")],
    side: Annotated[int, typer.Option(min=16, help="longest side of a drawing, in pixels")] = 256,
    group: Annotated[
        list[str] | None,
        typer.Option(help="draw only things of this group, such as animals-nature; repeatable; default: all seven"),
    ] = None,
    as_json: Json = False,
) -> None:
    r"""Make a colour data set of 8,600 named drawings from nine emoji sets.

    [bold]Examples[/bold]

      fitv2 emoji --out emoji
      fitv2 emoji --group animals-nature --group food-drink --out some
      fitv2 train --recipe emoji --set data.folder=emoji --out runs/emoji

    The groups are smileys-emotion, people-body, animals-nature, food-drink, travel-places, activities and objects.
    It fetches 45 MB with npm and needs resvg-py (pip install 'fitv2\[emoji]'). The licences are in ATTRIBUTION.md.
    After an interruption, the same command continues. Without this data set, 'fitv2 train --recipe emoji' uses the
    1,500 bundled drawings.
    """
    from ..prepare.emoji import make_emoji
    from .progress import image_progress

    start = time.perf_counter()
    written = make_emoji(out, side, image_progress, groups=group or ())
    seconds, number = time.perf_counter() - start, sum(archive.drawings for archive in written)
    size = sum(archive.path.stat().st_size for archive in written)
    figures = {"out": str(out), "drawings": number, "bytes": size, "seconds": round(seconds, 2)}
    figures["archives"] = {archive.path.name: archive.drawings for archive in written}
    lines = [
        f"{out}: {counted(number, 'drawing')} in {counted(len(written), 'archive')}, {size / 1e6:.0f} MB; "
        f"{sum(archive.made for archive in written)} made now, {seconds:.1f} s",
        f"Train on it with: {command('train', '--recipe', 'emoji', '--set', f'data.folder={out}')}",
    ]
    show(figures, lines, as_json)

"""`fitv2 prepare`: images to latents in shards, once, for any number of trainings."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import UserError
from ..messages import command, counted
from .options import Device, Json, out_option, refuse_options
from .output import show

if TYPE_CHECKING:
    from ..data.prepared import Preparation
    from ..prepare.run import Report

fitting_option = partial(typer.Option, rich_help_panel="How images are fitted")
drawing_option = partial(typer.Option, rich_help_panel="Drawings (emoji)")


def prepare(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="a folder of images, with a sub-folder per class or none; a list of 'path<TAB>label' lines (.txt, "
            ".tsv, .csv, .jsonl); WebDataset archives (.tar, a folder of them, or a quoted pattern); a Hugging Face "
            "data set; or drawings on canvases (emoji or emoji:FOLDER, see --epochs). Captions are kept"
        ),
    ],
    out: Annotated[Path, out_option(help="the folder to write or complete")],
    max_tokens: Annotated[int, fitting_option(min=1, help="larger images are scaled down to this many tokens")],
    autoencoder: Annotated[
        str, typer.Option(help="folder or hub id of an AutoencoderKL or AutoencoderDC, or the word pixels")
    ],
    patch_size: Annotated[
        int | None, fitting_option(min=1, help="in latent pixels; default 2, or 8 with pixels")
    ] = None,
    preprocessing: Annotated[
        Literal["mixed", "resize", "crop"],
        fitting_option(
            help="mixed: all images in their own shapes, and large images also as a centre square; training draws one "
            "of the two (Algorithm 1 of FiTv2); resize: all images in their own shapes only; crop: centre squares only"
        ),
    ] = "mixed",
    labels: Annotated[
        Literal["auto", "folders", "none"],
        typer.Option(
            help="auto: the source's own labels, such as metadata.jsonl, else sub-folders; folders: the sub-folders "
            "are the classes; none: no classes"
        ),
    ] = "auto",
    text_encoder: Annotated[
        str | None,
        typer.Option(
            help="also store what this text encoder makes of the captions, so that training need not run it: "
            "builtin:minilm, or a folder or hub id; 2 bytes per token and channel (builtin:minilm: 768 per token)"
        ),
    ] = None,
    flip: Annotated[bool, fitting_option(help="also use each image mirrored; not for emoji")] = True,
    channels: Annotated[int | None, fitting_option(help="with pixels: 3 for colour (default), 1 for grey")] = None,
    epochs: Annotated[int, drawing_option(min=1, help="images made of each drawing, alone or on a canvas")] = 10,
    objects: Annotated[int, drawing_option(min=1, max=4, help="drawings on a canvas, at most")] = 4,
    min_scale: Annotated[
        float, drawing_option(min=0.05, max=1, help="draw images at random linear scales from this to 1")
    ] = 0.35,
    workers: Annotated[int, typer.Option(min=1, help="threads that read and decode")] = 4,
    shard_size: Annotated[int, typer.Option(min=1, help="source files per shard")] = 1024,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Encode images, each at its own aspect ratio, into a folder for 'fitv2 train --data'.

    [bold]Examples[/bold]

      fitv2 prepare my/images --out prepared --max-tokens 256 --autoencoder stabilityai/sd-vae-ft-ema
      fitv2 prepare my/images --out pixels --max-tokens 144 --autoencoder pixels --text-encoder builtin:minilm
      fitv2 prepare emoji --epochs 20 --out canvases --max-tokens 64 --autoencoder runs/autoencoder
      torchrun --nproc_per_node 8 -m fitv2.cli prepare 'train-*.tar' --out prepared --max-tokens 256 --autoencoder vae

    After an interruption, the same command continues. If the source changes, only new and changed images are encoded.
    """
    from datetime import timedelta

    from ..data.emoji import is_emoji
    from ..data.scan import count_reasons
    from ..distributed.ranks import join_processes
    from ..prepare.canvas_source import CanvasSource
    from ..prepare.encode import build_encoder
    from ..prepare.run import prepare as run
    from ..prepare.sources import open_source
    from ..text import load_text_encoder
    from .progress import image_progress

    if drawn := is_emoji(source):
        refuse_options(context, {"flip", "preprocessing", "labels"}, "with emoji")
        flip, preprocessing = False, "resize"  # Mirrored or cut, a canvas would no longer be what its caption says.
        if Path(source).exists():
            note = (
                "Note: emoji are the drawings that ship; for those of a folder write emoji:FOLDER, for images ./emoji"
            )
            print(note, file=sys.stderr)
    else:
        refuse_options(context, {"epochs", "objects", "min_scale"}, "for sources other than emoji")
        if Path(source).exists():
            source = str(Path(source))  # Without a slash at the end, so that the same folder has the same name.
        if Path(source).is_dir() and out.resolve().is_relative_to(Path(source).resolve()):
            raise UserError(f"--out {out} lies within the source {source}; choose a folder outside of it")
    # Processes finish far apart: whoever waits must not give up.
    state = join_processes(device, timedelta(days=30))
    patch_size = patch_size or (8 if autoencoder == "pixels" else 2)
    encoder, preparation = build_encoder(
        autoencoder, max_tokens, patch_size, preprocessing, flip, channels, str(state.device)
    )
    text = None if text_encoder is None else load_text_encoder(text_encoder).to(state.device)
    start = time.perf_counter()
    opened = (
        CanvasSource(source, epochs, max_tokens, preparation.patch, objects, min_scale)
        if drawn
        else open_source(source, labels)
    )
    progress = partial(image_progress, shown=state.is_main_process)
    report = run(opened, source, out, encoder, preparation, shard_size, workers, state, progress, text)
    if report is not None:
        seconds = time.perf_counter() - start
        figures = vars(report) | {"out": str(out), "seconds": round(seconds, 2), "skipped": len(report.skipped)}
        figures |= {"skipped_by_reason": count_reasons(report.skipped), "skipped_files": report.skipped}
        show(figures, lines_of(report, out, seconds, preparation, drawn), as_json)


def lines_of(report: Report, out: Path, seconds: float, preparation: Preparation, drawn: bool) -> Iterator[str]:
    """Yields the report as lines for people; drawn: whether the images are drawings on canvases."""
    from ..data.captions import captioned_note
    from ..data.labelling import class_lines
    from ..data.listing import kind_of
    from ..data.scan import skipped_lines

    yield (
        f"{out}: {counted(report.images, 'image')} of {counted(report.files, 'file')} in "
        f"{counted(report.shards, 'shard')}; {report.encoded:,} encoded now, {report.reused:,} moved from other "
        f"shards, {seconds:.1f} s"
    )
    yield from (f"  {line}" for line in (*class_lines(report.classes), *report.notes))
    if report.square and preparation.preprocessing == "mixed":
        yield (
            f"  {report.square:,} of {counted(report.images, 'image')} also as a centre square (Algorithm 1 of FiTv2); "
            "--preprocessing resize keeps images in their own shapes only"
        )
    if report.captioned:
        yield f"  {captioned_note(report.captioned, report.images)}"
    if report.texts_encoded:
        yield f"  the features of {counted(report.texts_encoded, 'caption')} stored now"
    if report.duplicates:
        yield f"  {counted(report.duplicates, 'file')} with the same content as an earlier one, stored once"
    ignored = Counter(kind for _, reason in report.skipped if (kind := kind_of(reason)) is not None)
    skipped = [(name, reason) for name, reason in report.skipped if kind_of(reason) is None]
    yield from skipped_lines(skipped, ignored, f", all of them in {out / 'index.jsonl'}")
    size = preparation.patch_size
    patch = [] if size == 2 else ["--set", f"model.patch_size={size}"]
    yield f"Look at it with: {command('inspect', out)}"
    recipe = "emoji-latents" if drawn else "latents"
    yield f"Train on it with: {command('train', '--recipe', recipe, '--data', out, *patch)}"

"""`fitv2 plot`: the logs of training runs as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from ..messages import shortened, suggestion_beside

if TYPE_CHECKING:
    from collections.abc import Sequence


def plot(
    runs: Annotated[list[Path], typer.Argument(help="folders of training runs", metavar="RUN", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="the PNG file; default: plot.png in the first run's folder")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace --out if it exists")] = False,
) -> None:
    """Plot the losses and speed of one or more training runs.

    [bold]Examples[/bold]

      fitv2 plot runs/mine
      fitv2 plot runs/mine runs/other --out both.png --overwrite

    The plot shows the training loss (smoothed) and the held-out loss against steps and against images seen, the
    held-out loss also by time and by image size, the gradient norm, the learning rate and tokens per second. It can be
    drawn at any time during training. If the held-out loss rises while the training loss falls, the network memorises
    its images.
    """
    from ..drawing import write_page
    from ..training.plots import panels

    drawn = out or runs[0] / "plot.png"
    if out is not None and out.is_dir():
        raise UserError(f"--out {out} is a folder; name a PNG file")
    if out is not None and out.exists() and not overwrite:
        raise UserError(f"--out {out} is there already; name another file, or add --overwrite to replace it")
    write_page(drawn, panels(dict(zip(names_of(runs), map(log_of, runs), strict=True))))
    print(f"Drawn in {drawn}")


def names_of(runs: Sequence[Path]) -> list[str]:
    """Returns the names of folders, or their paths where names are equal. Raises UserError if one is given twice."""
    paths = [run.resolve() for run in runs]
    if len(set(paths)) < len(paths):
        raise UserError("the same run is given twice; name each once")
    short = [path.name for path in paths]
    return short if len(set(short)) == len(short) else [str(run) for run in runs]


def log_of(run: Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's log. Raises UserError if it is no run, or has no step yet."""
    from ..training.log import LOG, read_log

    if not run.is_dir():
        near = suggestion_beside(run, LOG) or ": name the folder of a training run, its --out"
        raise UserError(f"there is no folder {run}{near}")
    if not (run / LOG).is_file():
        below = sorted(str(log.parent) for log in run.glob(f"*/{LOG}"))
        advice = f"name one of {shortened(below)}" if below else "name the folder of a training run, its --out"
        raise UserError(f"{run} is not a run of 'fitv2 train': it holds no {LOG}; {advice}")
    lines = read_log(run / LOG)
    if not lines:
        raise UserError(f"{run / LOG} holds no step yet: plot it after the first steps of training")
    return lines

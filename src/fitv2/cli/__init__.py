"""The command line. Heavy libraries load inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..errors import UserError
from .convert import convert
from .evaluate import evaluate
from .inspect import inspect
from .prepare import prepare
from .profile import profile
from .sample import sample
from .study import study
from .train import train

app = typer.Typer(
    help="Diffusion transformers for pictures of any size and aspect ratio (FiTv2).\n\n"
    "Start with 'fitv2 sample': it needs nothing, and shows what the built-in model makes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"fitv2 {version('fitv2')}")
        raise typer.Exit


@app.callback()
def of_all(
    _: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=show_version, help="print the version and end")
    ] = False,
) -> None:
    pass


app.command()(sample)
app.command()(prepare)
app.command()(inspect)
app.command()(train)
app.command()(evaluate)
app.command()(convert)
app.command()(profile)
app.command()(study)


def main() -> None:
    """Runs the command line; a mistake of the user's ends in one sentence and exit code 1."""
    try:
        app()
    except (UserError, OSError) as error:
        sys.exit(f"fitv2: {error}")
    except RuntimeError as error:
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        sys.exit("fitv2: not enough memory: use smaller sizes, or lower training.tokens_per_pack")
    except KeyboardInterrupt:
        sys.exit("fitv2: interrupted")

"""The command line. Heavy libraries load inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
import warnings
from inspect import cleandoc
from io import TextIOWrapper
from typing import Annotated

import typer
from typer.core import TyperGroup

from ..errors import UserError, is_lack_of_memory
from ..messages import command
from .autoencoder import autoencoder
from .base_command import Command
from .calibrate import calibrate
from .convert import convert
from .emoji import emoji
from .evaluate import evaluate
from .inspect import inspect
from .plot import plot
from .prepare import prepare
from .profile import profile
from .recipes import recipes
from .reconstruct import reconstruct
from .sample import sample
from .study import study
from .train import train

INTERRUPTED = 130
DEBUG = "--debug"
FAULT = "this is a fault of fitv2: please report the lines above, with the version {} and the command: {}"
LESS_MEMORY = "not enough memory: use smaller sizes or fewer images at a time, or lower training.max_tokens_per_batch"
# Variables that make libraries log errors only; a user's own setting stays.
QUIET = {f"{name}_VERBOSITY": "error" for name in ("DIFFUSERS", "TRANSFORMERS", "HF_HUB", "DATASETS")}
QUIET |= {"TORCH_CPP_LOG_LEVEL": "ERROR", "KINETO_LOG_LEVEL": "6"}
# Libraries whose log lines would be printed with those of a training.
TALKATIVE = ("PIL", "torch", "accelerate", "diffusers", "transformers", "datasets", "huggingface_hub", "httpx")


class Interrupted(BaseException):
    """Ctrl-C, under a name that Typer does not swallow."""


class Commands(TyperGroup):
    """The commands; an interrupt leaves typer as an exception of its own, because typer would print about it."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted from None


app = typer.Typer(
    cls=Commands,
    help="Diffusion transformers for images of any size and aspect ratio (FiTv2).\n\n"
    "Start with 'fitv2 sample': it needs no data and shows what the built-in model makes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(asked: bool) -> None:
    """Prints the version and exits, if asked."""
    if asked:
        print(f"fitv2 {installed_version()}")
        raise typer.Exit


@app.callback()
def of_all(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=show_version, help="print the version and exit")
    ] = False,
    debug: Annotated[
        bool, typer.Option(DEBUG, help="show tracebacks and warnings; allowed anywhere on the line")
    ] = False,
) -> None:
    """Takes the options that go before any command."""


# Typer keeps line breaks within a paragraph, which a narrower terminal would break once more.
for run in (
    *(sample, prepare, emoji, inspect, train, autoencoder, reconstruct),
    *(plot, recipes, evaluate, calibrate, convert, profile, study),
):
    app.command(cls=Command, help=re.sub(r"(?<=\S)\n(?=\S)", " ", cleandoc(run.__doc__ or "")))(run)


def main() -> None:
    """Runs the command line. Exit codes: 1 for an error, 2 for a wrong use of options, 130 for Ctrl-C.

    A mistake of the user's ends in one sentence; a fault of this program, or any error with --debug, in a traceback.
    """
    given = command(*sys.argv[1:])
    last = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    debug = DEBUG in sys.argv[:last]
    sys.argv[:last] = [word for word in sys.argv[:last] if word != DEBUG]
    if not debug:
        silence_libraries()
    if isinstance(sys.stdout, TextIOWrapper):  # Names of files and classes may hold what is not text.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except (Interrupted, KeyboardInterrupt):  # The latter while typer makes the commands.
        print("fitv2: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        sentence = sentence_of(error)
        if debug or sentence is None:
            show_traceback(error)
        sys.exit(f"fitv2: {sentence or FAULT.format(installed_version(), given)}")
    finally:
        flush_output()


def silence_libraries() -> None:
    """Keeps warnings and log lines of libraries out of the output of a command."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for name, level in QUIET.items():
        os.environ.setdefault(name, level)
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)


def sentence_of(error: Exception) -> str | None:
    """What a user is told of an error; None for a fault of this program."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, UserError | OSError):
        return str(error)
    return LESS_MEMORY if is_lack_of_memory(error) else None


def show_traceback(error: BaseException) -> None:
    """Prints an error with all that led to it, even what a sentence for users leaves out."""
    one = error
    while one is not None:
        one.__suppress_context__ = False
        one = one.__cause__ or one.__context__
    traceback.print_exception(error)


def installed_version() -> str:
    """Returns the version of the installed package."""
    from importlib.metadata import version

    return version("fitv2")


def flush_output() -> None:
    """Whoever read our output may have gone, as `head` does: Python would complain about that at its very end."""
    if sys.stdout is None:  # Closed from the beginning, as by >&-.
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

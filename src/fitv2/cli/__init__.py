"""The command line. Heavy libraries load inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from inspect import cleandoc
from typing import Annotated

import typer
from typer.core import TyperGroup

from ..errors import UserError
from ..messages import command
from .convert import convert
from .evaluate import evaluate
from .inspect import inspect
from .prepare import prepare
from .profile import profile
from .recipes import recipes
from .sample import sample
from .study import study
from .train import train

INTERRUPTED = 130
DEBUG = "--debug"
FAULT = "this is a fault of fitv2: please report the lines above, with the version {} and the command: {}"
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
# How libraries are told to log errors alone; a user's own setting stays.
QUIET = {f"{name}_VERBOSITY": "error" for name in ("DIFFUSERS", "TRANSFORMERS", "HF_HUB", "DATASETS")}
QUIET |= {"TORCH_CPP_LOG_LEVEL": "ERROR", "KINETO_LOG_LEVEL": "6"}

# Whose log lines would be printed with those of a training.
TALKATIVE = ("PIL", "torch", "accelerate", "diffusers", "transformers", "datasets", "huggingface_hub", "httpx")


class Interrupted(BaseException):
    """Ctrl-C, under a name that Typer does not swallow."""


class Commands(TyperGroup):
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
    if asked:
        print(f"fitv2 {installed_version()}")
        raise typer.Exit


@app.callback()
def of_all(
    _: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=show_version, help="print the version and exit")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(DEBUG, help="show tracebacks of all errors, and warnings of libraries; anywhere on the line"),
    ] = False,
) -> None:
    pass


# Typer keeps line breaks within a paragraph, which a narrower terminal would break once more.
for run in (sample, prepare, inspect, train, recipes, evaluate, convert, profile, study):
    app.command(help=re.sub(r"(?<=\S)\n(?=\S)", " ", cleandoc(run.__doc__ or "")))(run)


def main() -> None:
    """Runs the command line. Exit codes: 1 for an error, 2 for a wrong use of options, 130 for Ctrl-C.

    A mistake of the user's ends in one sentence; a fault of this program, or any error with --debug, in a traceback.
    """
    given = command(*sys.argv[1:])
    debug = take_debug(sys.argv)
    if not debug:
        silence_libraries()
    try:
        app()
    except (Interrupted, KeyboardInterrupt):  # The latter while typer makes the commands.
        print("fitv2: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        sentence = sentence_of(error)
        if debug or sentence is None:
            traceback.print_exception(whole(error))
        sys.exit(f"fitv2: {sentence or FAULT.format(installed_version(), given)}")
    finally:
        flush_output()


def take_debug(words: list[str]) -> bool:
    """Removes --debug from a command line, wherever it stands before a `--`, and says whether it was there."""
    last = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:last] if word != DEBUG]
    words[:last] = kept
    return len(kept) < last


def silence_libraries() -> None:
    """Warnings and log lines of libraries do not stand amid the output of a command."""
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
    return str(error) if isinstance(error, UserError | OSError) else memory_sentence(error)


def memory_sentence(error: Exception) -> str | None:
    """What to do where memory is not enough, of the machine or of a GPU; None for any other error."""
    full = isinstance(error, RuntimeError) and any(words in str(error).lower() for words in NO_MEMORY)
    if not full and not isinstance(error, MemoryError):
        return None
    return "not enough memory: use smaller sizes or fewer images at a time, or lower training.max_tokens_per_batch"


def whole(error: BaseException) -> BaseException:
    """The same error with all that led to it, even what a sentence for users leaves out."""
    for one in chain(error):
        one.__suppress_context__ = False
    return error


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def installed_version() -> str:
    from importlib.metadata import version

    return version("fitv2")


def flush_output() -> None:
    """Whoever read our output may have gone, as `head` does: Python would complain about that at its very end."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

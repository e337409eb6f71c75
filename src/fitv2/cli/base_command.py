"""What every command does with its words: older names work for one more version, with a note; none may be empty."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from typer import BadParameter, Context
from typer.core import TyperCommand

from ..messages import suggestion_of

# By command. Short options now have one meaning in all of them: -s is --size, -n --num-images, -r --reference, -m
# --metrics.
RENAMED = {
    "train": {"-r": "--recipe", "-s": "--set", "-n": "--dry-run"},
    "study": {"-n": "--seeds"},
    "profile": {"-m": "--measure"},
    "inspect": {"--budget": "--max-tokens-per-batch"},
    "sample": {"--num": "--per-class", "--full-every": "--cache-interval"},
    "evaluate": {"--num": "--num-images", "--number": "--num-images", "--full-every": "--cache-interval"},
}
PRECISION = "--precision"
# What stands for a value in --help, by the names of parameters: one word for each kind of value in all commands.
METAVARS = {
    **dict.fromkeys(("model", "models", "init_from"), "MODEL"),
    **dict.fromkeys(("size", "window"), "HEIGHTxWIDTH"),
    **dict.fromkeys(("prompt", "negative_prompt"), "TEXT"),
    **dict.fromkeys(("only", "group"), "NAME"),
    **{"autoencoder": "AUTOENCODER", "data": "DATA", "settings": "SECTION.KEY=VALUE", "guidance": "SCALE"},
    **{"source": "SOURCE", "folder": "FOLDER"},
}
MAY_BE_EMPTY = ("--prompt", "-p", "--negative-prompt")


class Command(TyperCommand):
    """A command that also takes the older names, and suggests the nearest value for one that is not known."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for parameter in self.params:
            parameter.metavar = parameter.metavar or METAVARS.get(parameter.name or "")

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        refuse_empty(args, ctx)
        try:
            return super().parse_args(ctx, [*current(self.name or "", args)])
        except BadParameter as error:
            value, refused, known = error.message.removeprefix("Value error, ").partition(" is not one of ")
            if refused and (near := suggestion_of(value.strip("'"), known)):
                error.message = f"{value} is unknown{near} Choose from {known}"
            raise


def refuse_empty(words: Sequence[str], ctx: Context) -> None:
    """Raises BadParameter for an empty word, which would stand for the default or for the current folder."""
    for before, word in pairwise(["", *words]):
        option, equals, value = word.partition("=") if word.startswith("--") else (before, "=", word)
        if equals and not value and option not in MAY_BE_EMPTY:
            where = f" after {option}" if option else ""
            raise BadParameter(f"a word{where} is empty: is a variable of the shell not set?", ctx)


def current(command: str, words: Sequence[str]) -> Iterator[str]:
    """Yields the words of a command line with today's names, and notes those that have changed."""
    from ..legacy import PRECISIONS

    names, before = RENAMED.get(command, {}), ""
    for number, word in enumerate(words):
        if word == "--":
            yield from words[number:]
            return
        option = word.partition("=")[0] if word.startswith("--") else word[:2]
        rest = word.removeprefix(option)
        value = word if before == PRECISION else rest[1:] if option == PRECISION else ""
        if value in PRECISIONS:
            note_renamed(f"{PRECISION} {value}", f"{PRECISION} {PRECISIONS[value]}")
            word = word.removesuffix(value) + PRECISIONS[value]
        elif option in names:
            note_renamed(option, names[option])
            word = f"{names[option]}={rest.removeprefix('=')}" if rest else names[option]
        yield word
        before = word


def note_renamed(old: str, new: str) -> None:
    """Tells that an option has another name now, and that the old one will go."""
    print(f"Note: {old} is now called {new}", file=sys.stderr)

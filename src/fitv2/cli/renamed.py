"""What older versions called options and their values: it works for one more version, with a note."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from typer import BadParameter, Context
from typer.core import TyperCommand

from ..messages import suggestion_of
from .options import note_renamed

# Short options that now have one meaning in all commands: -s is --size, -n --num-images, -r --reference, -m --metrics.
SHORT = {
    "train": {"-r": "--recipe", "-s": "--set", "-n": "--dry-run"},
    "study": {"-n": "--seeds"},
    "profile": {"-m": "--measure"},
}
PRECISION = "--precision"


class Command(TyperCommand):
    """A command that also takes the older names, and suggests the nearest value for one that is not known."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, [*current(self.name or "", args)])
        except BadParameter as error:
            value, refused, known = error.message.removeprefix("Value error, ").partition(" is not one of ")
            if refused:
                near = suggestion_of(value.strip("'"), known)
                error.message = f"{value}{refused}{known.removesuffix('.') if near else known}{near}"
            raise


def current(command: str, words: Sequence[str]) -> Iterator[str]:
    """Yields the words of a command line with today's names, and notes those that have changed."""
    from ..legacy import PRECISIONS

    short, before = SHORT.get(command, {}), ""
    for number, word in enumerate(words):
        if word == "--":
            yield from words[number:]
            return
        option, value = (before, word) if before == PRECISION else word.split("=", 1) if "=" in word else (word, "")
        if option == PRECISION and value in PRECISIONS:
            note_renamed(f"{PRECISION} {value}", f"{PRECISION} {PRECISIONS[value]}")
            word = word.removesuffix(value) + PRECISIONS[value]
        elif word[:2] in short:
            long, rest = short[word[:2]], word[2:].removeprefix("=")
            note_renamed(word[:2], long)
            word = f"{long}={rest}" if rest else long
        yield word
        before = word

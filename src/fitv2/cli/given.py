"""Which options of a command were given, so that those without effect are refused and not ignored."""

from __future__ import annotations

from collections.abc import Collection

import typer

from ..errors import UserError


def refuse_without_effect(context: typer.Context, effective: Collection[str], why: str) -> None:
    """Raises UserError where options were given that do nothing here.

    effective: names of the parameters that do something. why: in which case the others do not, as the end of a
    sentence.
    """
    given = [
        parameter
        for parameter in context.command.params
        if parameter.name not in effective and source(context, parameter.name) == "COMMANDLINE"
    ]
    if given:
        options = ", ".join(parameter.opts[0] for parameter in given)
        raise UserError(f"{options}: without effect {why}; leave {'it' if len(given) == 1 else 'them'} out")


def source(context: typer.Context, name: str) -> str:
    found = context.get_parameter_source(name)
    return "" if found is None else found.name

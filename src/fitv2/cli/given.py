"""Refuses options that were given but have no effect, instead of ignoring them."""

from __future__ import annotations

from collections.abc import Collection

import typer

from ..errors import UserError


def refuse_without_effect(context: typer.Context, effective: Collection[str], why: str) -> None:
    """Raises UserError if options were given that have no effect here.

    effective: names of the parameters that have an effect. why: when the others have none, as the end of a sentence.
    """
    given = [
        parameter
        for parameter in context.command.params
        if parameter.name not in effective and source(context, parameter.name) == "COMMANDLINE"
    ]
    if given:
        options = ", ".join(parameter.opts[0] for parameter in given)
        raise UserError(f"{options}: without effect {why}; omit {'it' if len(given) == 1 else 'them'}")


def source(context: typer.Context, name: str) -> str:
    found = context.get_parameter_source(name)
    return "" if found is None else found.name

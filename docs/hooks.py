"""Adds to the pages, when mkdocs builds them: a reference from the program itself, and what the studies found."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any, get_args

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel

from fitv2.cli import app
from fitv2.settings.autoencoder import AUTOENCODER_SECTIONS
from fitv2.settings.recipe import SECTIONS

STUDIES = Path(__file__).parent.parent / "studies"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the studies' pages, images and tables; they link to each other, so they stay in their folders."""
    for path in sorted(STUDIES.rglob("*")):
        if path.suffix in (".md", ".png", ".jsonl"):
            name = Path("results") / path.relative_to(STUDIES)  # `studies/` is the address of studies.md.
            files.append(File.generated(config, name.as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_) -> str:
    """Replaces each mark, and the text up to END that readers of the Markdown file see, with the generated text."""
    for mark, generate in MARKS.items():
        if mark in markdown:
            before, _, rest = markdown.partition(mark)
            markdown = before + generate() + rest.partition(END)[2]
    return markdown


def commands() -> str:
    group = typer.main.get_command(app)
    return "\n\n".join(command_section(f"fitv2 {name}", command) for name, command in group.commands.items())


def command_section(name: str, command: Any) -> str:
    parameters = [p for p in command.params if not getattr(p, "hidden", False)]
    arguments = " ".join(p.metavar or p.name.upper() for p in parameters if not p.opts[0].startswith("-"))
    usage = " ".join(word for word in (name, arguments, "[OPTIONS]") if word)
    rows = (parameter_row(parameter) for parameter in parameters)
    table = ["| option | meaning |", "|---|---|", *rows]
    return "\n".join([f"## `{name}`", "", *paragraphs(command.help or ""), f"`{usage}`", "", *table])


def paragraphs(text: str) -> Iterator[str]:
    """The help text as Markdown: indented paragraphs are commands, and rich's markup has no place here."""
    for paragraph in re.sub(r"\[/?bold\]", "**", text).split("\n\n"):
        yield from ["```", dedent(paragraph).strip(), "```", ""] if paragraph.startswith("  ") else [paragraph, ""]


def parameter_row(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    meaning = getattr(parameter, "help", None) or ""
    if getattr(parameter, "show_default", False) and parameter.default not in (None, (), [], False):
        meaning += f"; default: {getattr(parameter.default, 'value', parameter.default)}"
    return f"| {names} | {cell(meaning)} |"


def recipes(sections: Mapping[str, Sequence[type[BaseModel]]] = SECTIONS) -> str:
    return "\n\n".join(settings_section(name, kinds) for name, kinds in sections.items())


def settings_section(section: str, kinds: Sequence[type[BaseModel]]) -> str:
    """The settings of a section; of several kinds, such as architectures, each in a table of its own."""
    tables = "\n\n".join(settings_table(kind, "###" if len(kinds) > 1 else "") for kind in kinds)
    return f"## `{section}`\n\n{tables}"


def settings_table(settings: type[BaseModel], level: str) -> str:
    title = [f"{level} {settings.__name__.removesuffix('Settings')}", ""] if level else []
    rows = [*title, (settings.__doc__ or "").strip(), "", "| key | default | meaning |", "|---|---|---|"]
    for name, field in settings.model_fields.items():
        choices = [str(value) for value in get_args(field.annotation) if isinstance(value, str)]
        meaning = (field.description or "") + (f" ({', '.join(choices)})" if choices else "")
        default = "" if field.is_required() or field.default_factory else f"`{field.default}`"
        rows.append(f"| `{name}` | {default} | {cell(meaning)} |")
    return "\n".join(rows)


def cell(text: str) -> str:
    """Text that stands within a Markdown table and is taken literally."""
    return text.replace("|", r"\|").replace("[", r"\[").replace("<", "&lt;").replace("*", r"\*")


END = "<!-- end -->"
MARKS = {
    "<!-- commands -->": commands,
    "<!-- recipes -->": recipes,
    "<!-- autoencoder settings -->": lambda: recipes(AUTOENCODER_SECTIONS),
}

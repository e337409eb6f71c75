"""YAML of users: recipes, studies and the authors' configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .errors import UserError


def parse_yaml(text: str | bytes, source: object) -> dict[str, Any]:
    """Returns a YAML mapping; source: where it comes from. Raises UserError for anything else, also for no content."""
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        raise UserError(f"{source} is empty: write sections with keys into it, or give another file")
    if not isinstance(tree, dict):
        raise UserError(f"{source} must hold sections with keys, as in 'section:' and below it 'key: value'")
    return tree


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError for any other file."""
    try:
        return parse_yaml(path.read_bytes(), path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None

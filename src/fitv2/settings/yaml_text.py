"""YAML of users: recipes, studies and the authors' configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError


class UniqueKeys(yaml.SafeLoader):
    """Refuses a key that a mapping has twice: the first one would be lost without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return node


def parse_yaml(text: str | bytes, source: object) -> dict[str, Any]:
    """Returns a YAML mapping; source: where it comes from. Raises UserError for anything else, also for no content."""
    try:
        tree = yaml.load(text, UniqueKeys)
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

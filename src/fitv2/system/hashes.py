"""Digests of settings and files: equal content has the same digest."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import as_file
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any


def json_digest(content: Any) -> str:
    """SHA-256 of what JSON can hold, in 64 digits; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path | Traversable) -> str:
    """Returns the SHA-256 of a file, in 64 digits. Raises OSError if it cannot be read."""
    with as_file(path) as local, local.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

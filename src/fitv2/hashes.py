"""Digests of settings: equal content has the same digest."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def json_digest(content: Any) -> str:
    """SHA-256 of what JSON can hold, in 64 digits; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

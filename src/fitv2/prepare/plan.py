"""Which shard holds what, from the content hashes of all files: known before the first picture is encoded.

A content is encoded and stored once, in the shard of the first file that has it, whoever writes that shard and when.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..data.formats import UnreadableImage
from ..data.labelling import Item
from .items import Source


@dataclass(frozen=True)
class File:
    """An item of the source, and the SHA-256 of its bytes, or why it is not taken."""

    item: Item
    sha256: str | None
    refused: str | None = None


@dataclass(frozen=True)
class ShardPlan:
    """Consecutive files of the source. owned: the contents that this shard stores, each with the index of its file."""

    number: int
    first: int
    files: Sequence[File]
    owned: dict[str, int]
    settings: str

    @cached_property
    def name(self) -> str:
        """The same where the same contents are prepared alike, so a shard that need not change keeps its name."""
        content = hashlib.sha256(self.settings.encode())
        for sha256 in self.owned:
            content.update(bytes.fromhex(sha256))
        return f"{self.number:05d}-{content.hexdigest()[:12]}"


def hash_file(source: Source, index: int) -> File:
    """Reads a file once; one that cannot be read, is empty or far too large is refused."""
    item = source.items[index]
    if item.refused is not None:
        return File(item, None, item.refused)
    try:
        content = source.read(index)
    except OSError as error:
        return File(item, None, f"cannot be read: {error.strerror or error}")
    except UnreadableImage as error:
        return File(item, None, str(error))
    return File(item, hashlib.sha256(content).hexdigest()) if content else File(item, None, "empty file")


def plan_shards(files: Sequence[File], shard_size: int, settings: str) -> list[ShardPlan]:
    """All shards of the source, `shard_size` files each."""
    seen: set[str] = set()
    plans = []
    for number, first in enumerate(range(0, len(files), shard_size)):
        part = files[first : first + shard_size]
        owned: dict[str, int] = {}
        for index, file in enumerate(part, first):
            if file.sha256 is not None and file.sha256 not in seen:
                seen.add(file.sha256)
                owned[file.sha256] = index
        plans.append(ShardPlan(number, first, part, owned, settings))
    return plans


def repeated(files: Sequence[File]) -> set[str]:
    """The contents that more than one file has."""
    return {sha256 for sha256, count in Counter(file.sha256 for file in files).items() if sha256 and count > 1}

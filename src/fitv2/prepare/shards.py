"""Shards: which one holds what, and how they lie on disk.

The content hashes of all files decide on the shards before the first image is encoded. A content is encoded and stored
once, in the shard of the first file that has it, whoever writes that shard and when. A shard is a file of tensors, and
an index that is written after it and holds its hash: what is there is trusted once the hash is right.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from ..atomic import write_file, write_text
from ..data.formats import UnreadableImage
from ..data.labelling import Item
from ..errors import UserError
from .items import Source

# What is known of a content: {"size", "variants": {VARIANT: {"size", "tensor", "offset", "crc32"}}} or {"skipped"}.
Outcome = dict[str, Any]
OUTCOME = ("size", "variants", "skipped")
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class File:
    """An item of the source, and the SHA-256 of its bytes, or why it is refused."""

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
    """Returns all shards of the source, `shard_size` files each."""
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
    """Returns the contents that more than one file has."""
    return {sha256 for sha256, count in Counter(file.sha256 for file in files).items() if sha256 and count > 1}


def shard_files(folder: Path, name: str) -> tuple[Path, Path]:
    """Returns the paths of the tensors of a shard and of its index."""
    return folder / f"{name}.safetensors", folder / f"{name}.jsonl"


def read_shard_index(index: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Reads header and lines of a shard's index. Raises OSError, ValueError or KeyError if it is not whole."""
    first, lines = index.read_bytes().split(b"\n", 1)
    header = json.loads(first)
    if hashlib.sha256(lines).hexdigest() != header["lines_sha256"]:
        raise UserError("its lines are not as they were written")
    return header, [json.loads(line) for line in lines.splitlines()]


def is_whole(folder: Path, name: str) -> bool:
    """Whether a shard is as it was written, by the hash in its index, and holds finite numbers."""
    tensors, index = shard_files(folder, name)
    try:
        header, _ = read_shard_index(index)
        with tensors.open("rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == header["sha256"]
        return same and not any(not_finite(tensors))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def sha256_of(tensor: str) -> str:
    """Returns the content that a tensor, called CONTENT.VARIANT, belongs to."""
    return tensor.partition(".")[0]


def outcomes_of(lines: Iterable[dict[str, Any]]) -> dict[str, Outcome]:
    """Returns content to outcome, from the lines of the contents that the shard owns."""
    owned = [line for line in lines if "sha256" in line and ("variants" in line or "skipped" in line)]
    return {line["sha256"]: {key: line[key] for key in OUTCOME if key in line} for line in owned}


def not_finite(tensors: Path) -> Iterator[str]:
    """Yields the names of the tensors of a shard that hold NaN or infinity, which older versions stored."""
    with safe_open(tensors, "np") as file:
        for name in file.keys():  # noqa: SIM118 - it is no dictionary.
            if file.get_slice(name).get_dtype() == "F16" and not np.isfinite(file.get_tensor(name)).all():
                yield name


def read_store(folder: Path, names: Iterable[str], wanted: Collection[str]) -> dict[str, tuple[Path, Outcome]]:
    """Returns where the wanted contents are stored already, among whole shards."""
    store = {}
    for name in names:
        tensors, index = shard_files(folder, name)
        outcomes = outcomes_of(read_shard_index(index)[1])
        store |= {sha256: (tensors, outcome) for sha256, outcome in outcomes.items() if sha256 in wanted}
    return store


def read_stored(found: Iterable[tuple[Path, Outcome]]) -> Arrays:
    """Reads the tensors of stored contents by name; each shard is opened once."""
    names = defaultdict(list)
    for path, outcome in found:
        names[path] += [stored["tensor"] for stored in outcome.get("variants", {}).values()]
    arrays = {}
    for path, wanted in names.items():
        with safe_open(path, "np") as file:
            arrays |= {name: file.get_tensor(name) for name in wanted}
    return arrays


def write_shard(folder: Path, plan: ShardPlan, arrays: Arrays, outcomes: dict[str, Outcome]) -> None:
    """Writes the tensors, whole or not at all, and after them the index."""
    blob = save(arrays)
    places = tensor_places(blob)
    for outcome in outcomes.values():
        for stored in outcome.get("variants", {}).values():
            start, end = places[stored["tensor"]]
            flips = arrays[stored["tensor"]].shape[0]
            step = (end - start) // flips
            stored["offset"] = start
            stored["crc32"] = [zlib.crc32(blob[at : at + step]) for at in range(start, end, step)]
    tensors, index = shard_files(folder, plan.name)
    header = {"shard": tensors.name, "sha256": hashlib.sha256(blob).hexdigest(), "bytes": len(blob)}

    def write(draft: Path) -> None:
        draft.write_bytes(blob)

    write_file(tensors, write)
    write_text(index, index_text(plan, header, outcomes))


def refresh_index(folder: Path, plan: ShardPlan) -> None:
    """Writes the index of a whole shard again where its files have other names or labels than before."""
    _, index = shard_files(folder, plan.name)
    header, lines = read_shard_index(index)
    text = index_text(plan, header, outcomes_of(lines))
    if index.read_text(encoding="utf-8") != text:
        write_text(index, text)


def tensor_places(blob: bytes) -> dict[str, tuple[int, int]]:
    """Returns where each tensor of a safetensors file begins and ends, in bytes from the start of the file."""
    header = 8 + int.from_bytes(blob[:8], "little")
    entries = json.loads(blob[8:header])
    return {name: tuple(header + at for at in entry["data_offsets"]) for name, entry in entries.items()}


def index_text(plan: ShardPlan, header: dict[str, Any], outcomes: dict[str, Outcome]) -> str:
    """Returns a line about the shard, and one per file of the source with its outcome if its content is owned here."""
    lines = []
    for index, file in enumerate(plan.files, plan.first):
        line: dict[str, Any] = {"id": file.item.id, "label": file.item.label}
        if file.sha256 is None:
            line["skipped"] = file.refused
        else:
            line["sha256"] = file.sha256
            if plan.owned.get(file.sha256) == index:
                line |= outcomes[file.sha256]
        lines.append(json.dumps(line) + "\n")
    text = "".join(lines)
    header = header | {"files": len(plan.files), "lines_sha256": hashlib.sha256(text.encode()).hexdigest()}
    return json.dumps(header) + "\n" + text

"""Shards: which one holds which images, and how they lie on disk.

The content hashes of all files decide on the shards before the first image is encoded. A content is encoded and stored
once, in the shard of the first file that has it, whichever process writes that shard. A shard is a file of tensors, and
an index that is written after it and holds its hash: a shard is trusted once the hash is right.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from ..data.formats import UnreadableImage
from ..data.labelling import Item
from ..errors import UserError
from ..system.atomic import write_file, write_text
from ..system.hashes import file_digest
from .items import Source

# The lines of an index, as far as they are about a content: {"skipped": REASON}, or {"size", "variants": {VARIANT:
# {"size", "tensor", "offset", "crc32"}}}.
Outcome = dict[str, Any]
OUTCOME = ("size", "variants", "skipped")
# Of the encoder, which gives the same every time; any other reason may pass.
NOT_FINITE = "not finite: the autoencoder gives NaN or infinity for it"
SHARD_FILE = re.compile(r"\d+-[0-9a-f]{12}\.(safetensors|jsonl)")
# An item of the source, and the SHA-256 of its bytes, None if it is refused.
File = tuple[Item, str | None]


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
        """Depends on the contents and the settings alone, so that a shard that need not change keeps its name."""
        content = hashlib.sha256(self.settings.encode())
        for sha256 in self.owned:
            content.update(bytes.fromhex(sha256))
        return f"{self.number:05d}-{content.hexdigest()[:12]}"


def hash_file(source: Source, index: int) -> File:
    """Reads a file once, and its captions; refuses one that cannot be read, is empty or far too large."""
    item = source.items[index]
    if item.refused is not None:
        return item, None
    try:
        if content := source.read(index):
            return replace(item, captions=source.captions(index)), hashlib.sha256(content).hexdigest()
        reason = "empty file"
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
    except UnreadableImage as error:
        reason = str(error)
    return replace(item, refused=reason), None


def plan_shards(files: Sequence[File], shard_size: int, settings: str) -> list[ShardPlan]:
    """Returns all shards of the source, `shard_size` files each."""
    seen: set[str] = set()
    plans = []
    for number, first in enumerate(range(0, len(files), shard_size)):
        part = files[first : first + shard_size]
        owned: dict[str, int] = {}
        for index, (_, sha256) in enumerate(part, first):
            if sha256 is not None and sha256 not in seen:
                seen.add(sha256)
                owned[sha256] = index
        plans.append(ShardPlan(number, first, part, owned, settings))
    return plans


def shard_files(folder: Path, name: str) -> tuple[Path, Path]:
    """Returns the paths of the tensors of a shard and of its index."""
    return folder / f"{name}.safetensors", folder / f"{name}.jsonl"


def read_shard_index(index: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Reads header and lines of a shard's index. Raises OSError, ValueError or KeyError if it is damaged."""
    first, lines = index.read_bytes().split(b"\n", 1)
    header = json.loads(first)
    if hashlib.sha256(lines).hexdigest() != header["lines_sha256"]:
        raise UserError("its lines have another hash")
    return header, [json.loads(line) for line in lines.splitlines()]


def is_as_written(tensors: Path, sha256: str) -> bool:
    """Whether the tensors of a shard are there with the hash that they were written with."""
    try:
        return file_digest(tensors) == sha256
    except OSError:
        return False


def is_whole(folder: Path, name: str) -> bool:
    """Whether a shard is as it was written, by the hash in its index."""
    tensors, index = shard_files(folder, name)
    try:
        return is_as_written(tensors, read_shard_index(index)[0]["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def content_of(tensor: str) -> str:
    """Returns the SHA-256 in the name of a tensor, CONTENT.VARIANT."""
    return tensor.partition(".")[0]


def outcomes_of(lines: Iterable[dict[str, Any]]) -> dict[str, Outcome]:
    """Returns content to outcome, from the lines of the contents that the shard owns."""
    owned = [line for line in lines if "sha256" in line and ("variants" in line or "skipped" in line)]
    return {line["sha256"]: {key: line[key] for key in OUTCOME if key in line} for line in owned}


def read_store(folder: Path, names: Iterable[str], wanted: Collection[str]) -> dict[str, tuple[Path, Outcome]]:
    """Returns where the wanted contents are stored already, among whole shards; none that might be decoded by now."""
    store = {}
    for name in names:
        tensors, index = shard_files(folder, name)
        outcomes = outcomes_of(read_shard_index(index)[1])
        settled = {sha256: outcome for sha256, outcome in outcomes.items() if is_settled(outcome)}
        store |= {sha256: (tensors, outcome) for sha256, outcome in settled.items() if sha256 in wanted}
    return store


def is_settled(outcome: Outcome) -> bool:
    """Whether a content is stored, or skipped for good and not by a lack of memory or of a package."""
    return outcome.get("skipped", NOT_FINITE) == NOT_FINITE


def skipped_contents(folder: Path, plan: ShardPlan) -> list[str]:
    """Returns the contents of a whole shard that are worth another try."""
    outcomes = outcomes_of(read_shard_index(shard_files(folder, plan.name)[1])[1])
    return [sha256 for sha256 in plan.owned if not is_settled(outcomes[sha256])]


def read_stored(found: Iterable[tuple[Path, Outcome]]) -> dict[str, np.ndarray]:
    """Reads the tensors of stored contents by name; each shard is opened once."""
    names = defaultdict(list)
    for path, outcome in found:
        names[path] += [stored["tensor"] for stored in outcome.get("variants", {}).values()]
    arrays = {}
    for path, wanted in names.items():
        with safe_open(path, "np") as file:
            arrays |= {name: file.get_tensor(name) for name in wanted}
    return arrays


def write_shard(folder: Path, plan: ShardPlan, arrays: dict[str, np.ndarray], outcomes: dict[str, Outcome]) -> None:
    """Writes the tensors, whole or not at all, and after them the index."""
    blob = save(arrays)
    begin = 8 + int.from_bytes(blob[:8], "little")  # After the JSON header, whose offsets count from its end.
    entries = json.loads(blob[8:begin])
    for outcome in outcomes.values():
        for stored in outcome.get("variants", {}).values():
            start, end = (begin + offset for offset in entries[stored["tensor"]]["data_offsets"])
            step = (end - start) // arrays[stored["tensor"]].shape[0]  # Of one flip.
            stored["offset"] = start
            stored["crc32"] = [zlib.crc32(blob[at : at + step]) for at in range(start, end, step)]
    tensors, _ = shard_files(folder, plan.name)
    write_file(tensors, lambda draft: draft.write_bytes(blob))
    header = {"shard": tensors.name, "sha256": hashlib.sha256(blob).hexdigest(), "bytes": len(blob)}
    write_index(folder, plan, header, outcomes)


def refresh_index(folder: Path, plan: ShardPlan) -> None:
    """Writes the index of a whole shard again if its files have other names, labels or captions than before."""
    header, lines = read_shard_index(shard_files(folder, plan.name)[1])
    write_index(folder, plan, header, outcomes_of(lines))


def write_index(folder: Path, plan: ShardPlan, header: dict[str, Any], outcomes: dict[str, Outcome]) -> None:
    """Writes, if it is new, a line about the shard and one per file, with its outcome if its content is owned here."""
    lines = []
    for index, (item, sha256) in enumerate(plan.files, plan.first):
        line: dict[str, Any] = {"id": item.id, "label": item.label}
        if item.captions:
            line["captions"] = item.captions
        if sha256 is None:
            line["skipped"] = item.refused
        else:
            line["sha256"] = sha256
            if plan.owned.get(sha256) == index:
                line |= outcomes[sha256]
        lines.append(json.dumps(line) + "\n")
    text = "".join(lines)
    header = header | {"files": len(plan.files), "lines_sha256": hashlib.sha256(text.encode()).hexdigest()}
    text = f"{json.dumps(header)}\n{text}"
    path = shard_files(folder, plan.name)[1]
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)

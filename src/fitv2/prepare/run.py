"""A preparation from source to data set: hash, plan, encode what is missing, merge. Several processes share it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..atomic import remove_drafts, write_file, write_text
from ..data.formats import UnreadableImage
from ..data.labelling import count_classes
from ..data.prepared import DATASET, INDEX, SETTINGS, SHARDS, Preparation, read_settings
from ..data.scan import count_reasons, in_threads
from ..distributed.ranks import Ranks, all_gather, on_rank0, shard_of_rank
from ..errors import UserError
from ..locks import locked
from ..messages import shortened
from .encode import Decoded, Encoder, MomentEncoder, decode_variants, encode_all
from .items import Source
from .shards import (
    File,
    Outcome,
    ShardPlan,
    hash_file,
    is_whole,
    plan_shards,
    read_shard_index,
    read_store,
    read_stored,
    refresh_index,
    repeated,
    sha256_of,
    shard_files,
    write_shard,
)

NOT_FINITE = "not finite: the autoencoder gives NaN or infinity for it"
# (what is being done, how many) to a context whose value takes the number just finished.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass
class Report:
    """What a preparation found and did.

    Attributes:
        skipped: (id, reason).
        encoded, reused: Numbers of images, by this run.
        classes: Images of each class, by name.
        notes: Sentences about the labels.
    """

    files: int = 0
    images: int = 0
    duplicates: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    shards: int = 0
    encoded: int = 0
    reused: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def skipped_by_reason(self) -> dict[str, int]:
        return count_reasons(self.skipped)


def prepare(
    source: Source,
    name: str,
    out: Path,
    encoder: Encoder,
    preparation: Preparation,
    shard_size: int,
    workers: int,
    state: Ranks,
    progress: Progress,
) -> Report | None:
    """Makes or completes a prepared data set. Interrupted at any moment, the same call continues, to the same bytes.

    Args:
        source: The images.
        name: What the source is called.
        out: The folder.
        encoder, preparation: How images become latents; see `encode.build_encoder`.
        shard_size: Files of the source per shard.
        workers: Threads that read and decode.
        state, progress: This process among those that share the work, and what shows how far it is.

    Returns:
        The report, on rank 0 alone.

    Raises:
        UserError: `out` holds something else.
        OSError: `out` cannot be written; what was there before is still whole then.
    """
    shards = out / SHARDS
    with one_sentence(out), alone(out):
        on_rank0(partial(begin, out, preparation))
        files = hash_all(source, workers, state, progress)
        plans = plan_shards(files, shard_size, preparation.digest)
        whole = set(all_gather([name for name in shard_of_rank(stems(shards), state) if is_whole(shards, name)]))
        for plan in shard_of_rank([plan for plan in plans if plan.name in whole], state):
            refresh_index(shards, plan)
        missing = [plan for plan in plans if plan.name not in whole]
        wanted = {sha256 for plan in missing for sha256 in plan.owned}
        store = read_store(shards, sorted(whole), wanted)
        counts = Counter()
        with progress("encoding", sum(len(plan.owned) for plan in shard_of_rank(missing, state))) as done:
            for plan in shard_of_rank(missing, state):
                counts += build_shard(shards, plan, source, encoder, preparation, store, workers, done)
        counts = sum(all_gather([counts]), Counter())
        if not state.is_main_process:
            return None
        report = merge(out, plans, repeated(files), source, name, preparation)
        report.encoded, report.reused = counts["encoded"], counts["reused"]
        return report


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Locks a folder for one preparation: rank 0 holds the lock.

    Raises UserError, on every rank, if another preparation holds it.
    """

    def take() -> None:
        refuse_foreign(out)  # Before a lock is left there.
        held.enter_context(locked(out, "a preparation"))

    with ExitStack() as held:
        on_rank0(take)
        yield


def begin(out: Path, preparation: Preparation) -> None:
    """Brings the folder into the state that this preparation needs, without what a kill may have left."""
    keep_settings(out, preparation)
    remove_drafts(out)
    remove_drafts(out / SHARDS)


def refuse_foreign(out: Path) -> None:
    """Raises UserError for a folder that holds something else than prepared data."""
    foreign = out.exists() and read_settings(out) is None
    if foreign and any(path for path in out.iterdir() if not path.name.startswith(".")):
        raise UserError(f"{out} holds something else than a prepared data set; choose another --out")


def keep_settings(out: Path, preparation: Preparation) -> None:
    """Raises UserError where the folder was prepared in another way."""
    kept = read_settings(out)
    begun = any((out / SHARDS).glob("*.jsonl"))
    if kept is not None and begun and kept.identity_fields != preparation.identity_fields:
        raise UserError(f"{out} was prepared with {difference(kept, preparation)}; choose another --out")
    if kept != preparation:  # Weights may have moved to another place.
        write_text(out / SETTINGS, json.dumps(asdict(preparation), indent=1))


def difference(kept: Preparation, wanted: Preparation) -> str:
    """Returns what is not the same, in words."""
    if kept.autoencoder_sha256 != wanted.autoencoder_sha256:
        return f"another autoencoder, {kept.autoencoder or 'pixels'} and not {wanted.autoencoder or 'pixels'}"
    if kept.decoding != wanted.decoding:
        return "an older version of fitv2, which decoded some files otherwise"
    before, now = kept.identity_fields, wanted.identity_fields
    changed = [key for key in before if before[key] != now[key]]
    return ", ".join(f"{key.replace('_', ' ')} {before[key]}, not {now[key]}" for key in changed)


def hash_all(source: Source, workers: int, state: Ranks, progress: Progress) -> list[File]:
    """Reads and hashes every file of the source, in order."""
    indices = shard_of_rank(range(len(source.items)), state)
    with progress("reading", len(indices)) as done:
        hashed = []
        for index, file in zip(indices, in_threads(workers, partial(hash_file, source), indices), strict=True):
            hashed.append((index, file))
            done(1)
    return [file for _, file in sorted(all_gather(hashed), key=lambda pair: pair[0])]


def build_shard(
    folder: Path,
    plan: ShardPlan,
    source: Source,
    encoder: Encoder,
    preparation: Preparation,
    store: dict[str, tuple[Path, Outcome]],
    workers: int,
    done: Callable[[int], None],
) -> Counter:
    """Encodes what is stored nowhere and writes the shard; returns how many contents were encoded and reused."""
    known = [sha256 for sha256 in plan.owned if sha256 in store]
    outcomes = {sha256: store[sha256][1] for sha256 in known}
    arrays = read_stored(store[sha256] for sha256 in known)
    done(len(known))
    missing = {sha256: index for sha256, index in plan.owned.items() if sha256 not in store}

    def decoded(sha256: str) -> Decoded:
        return decode_again(source, missing[sha256], sha256, preparation)

    def images() -> Iterator:
        for sha256, (outcome, variants) in zip(missing, in_threads(workers, decoded, list(missing)), strict=True):
            outcomes[sha256] = outcome
            for variant, array in variants.items():
                outcome["variants"][variant]["tensor"] = f"{sha256}.{variant}"
                yield f"{sha256}.{variant}", array
            done(1)

    encoded = dict(encode_all(encoder, images()))
    lost = {sha256_of(name) for name, latent in encoded.items() if latent is None}
    if isinstance(encoder, MomentEncoder) and 2 * len(lost) > len(missing):
        raise UserError(f"{len(lost)} of {len(missing)} images have no finite latents: {encoder.not_finite}")
    outcomes |= {sha256: {"skipped": NOT_FINITE} for sha256 in lost}
    arrays |= {name: latent for name, latent in encoded.items() if latent is not None and sha256_of(name) not in lost}
    write_shard(folder, plan, arrays, outcomes)
    return Counter(encoded=len(missing) - len(lost), reused=len(known))


def decode_again(source: Source, index: int, sha256: str, preparation: Preparation) -> Decoded:
    """Raises ValueError if the file has changed since it was hashed."""
    try:
        content = source.read(index)
    except (OSError, UnreadableImage):
        content = b""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{source.items[index].id} changed while it was being prepared; run the same command again")
    return decode_variants(content, preparation)


def merge(
    out: Path, plans: Sequence[ShardPlan], twice: set[str], source: Source, source_name: str, preparation: Preparation
) -> Report:
    """Writes index.jsonl and dataset.json, then removes what they do not speak of."""
    report = Report(shards=len(plans), notes=[*source.notes, *changed_classes(out, source.class_names)])
    labels: list[int] = []
    index = hashlib.sha256()
    headers = []

    def write(draft: Path) -> None:
        with draft.open("wb") as file:
            for line in merged_lines(out / SHARDS, plans, twice, headers, report):
                if "skipped" not in line:
                    labels.append(line["label"])
                content = json.dumps(line).encode() + b"\n"
                index.update(content)
                file.write(content)
        if not report.images:  # What was there before is worth more.
            told = shortened([f"{name}: {reason}" for name, reason in report.skipped])
            raise UserError(f"no image can be read in {source_name}: {told or 'there are no files'}")

    write_file(out / INDEX, write)
    report.classes = count_classes(labels, source.class_names)
    counts = {"files": report.files, "images": report.images, "duplicates": report.duplicates}
    dataset = asdict(preparation) | {
        "source": source_name,
        "class_names": source.class_names,
        "counts": counts | {"skipped": len(report.skipped)},
        "skipped_by_reason": report.skipped_by_reason,
        "shards": [
            {"file": header["shard"], "sha256": header["sha256"], "bytes": header["bytes"]} for header in headers
        ],
        "index_sha256": index.hexdigest(),
    }
    write_text(out / DATASET, json.dumps(dataset, indent=1))
    kept = {path.name for plan in plans for path in shard_files(out, plan.name)}
    for path in (out / SHARDS).iterdir():
        if path.name not in kept:
            path.unlink()
    return report


def changed_classes(out: Path, class_names: Sequence[str]) -> Iterator[str]:
    """Yields a sentence if an earlier preparation in the folder had other classes, since labels then change meaning."""
    try:
        before = json.loads((out / DATASET).read_bytes())["class_names"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if before == list(class_names):
        return
    new = shortened([name for name in class_names if name not in before])
    gone = shortened([name for name in before if name not in class_names])
    parts = [f"new {new}"] * bool(new) + [f"gone {gone}"] * bool(gone)
    yield (
        f"the classes are others than before ({'; '.join(parts) or 'in another order'}): a training on the earlier "
        "ones cannot be resumed with these"
    )


def merged_lines(
    folder: Path, plans: Sequence[ShardPlan], twice: set[str], headers: list[dict[str, Any]], report: Report
) -> Iterator[dict[str, Any]]:
    """Yields the lines of all shards, repeated contents with what their first file says; counts them in the report."""
    first: dict[str, dict[str, Any]] = {}
    for plan in plans:
        header, lines = read_shard_index(shard_files(folder, plan.name)[1])
        headers.append(header)
        for line in lines:
            sha256 = line.get("sha256")
            if sha256 in first:
                line |= {key: value for key, value in first[sha256].items() if key not in line}
                line["duplicate_of"] = first[sha256]["id"]
                report.duplicates += 1
            elif "variants" in line:
                line["shard"] = header["shard"]
            if sha256 in twice:
                first.setdefault(sha256, line)
            report.files += 1
            if "skipped" in line:
                report.skipped.append((line["id"], line["skipped"]))
            else:
                report.images += 1
            yield line


def stems(folder: Path) -> list[str]:
    """Returns the names of all shards that have an index, in order."""
    return sorted(path.stem for path in folder.glob("*.jsonl"))


@contextmanager
def one_sentence(out: Path) -> Iterator[None]:
    """Adds to an OSError what to do about a full disk or a folder that cannot be written."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{out} cannot be written ({error.strerror or error}); what is finished is kept: free some space or allow "
            "writing, then run the same command again"
        ) from error

"""A preparation from source to data set: hash, plan, encode what is missing, merge. Several processes share it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..data.columns import write_columns
from ..data.formats import UnreadableImage
from ..data.labelling import count_classes
from ..data.prepared import DATASET, INDEX, SETTINGS, SHARDS, Preparation, read_settings
from ..data.scan import count_reasons, in_threads
from ..distributed.ranks import Ranks, all_gather, locked_on_rank0, on_rank0, only_on_rank0, shard_of_rank
from ..errors import UserError
from ..messages import shortened
from ..system.atomic import remove_drafts, write_files, write_text
from ..text import TextEncoder
from .encode import Decoded, Encoder, decode_variants, encode_all
from .items import Progress, Source
from .shards import (
    NOT_FINITE,
    OUTCOME,
    SHARD_FILE,
    File,
    Outcome,
    ShardPlan,
    content_of,
    hash_file,
    is_whole,
    plan_shards,
    read_shard_index,
    read_store,
    read_stored,
    refresh_index,
    shard_files,
    skipped_contents,
    write_shard,
)
from .texts import captions_of, store_features


@dataclass
class Report:
    """What a preparation found and did.

    Attributes:
        skipped: (id, reason).
        square: The number of images of which a square crop is stored.
        captioned: The number of images with a caption.
        encoded, reused: Numbers of images, by this run.
        texts_encoded: The number of captions whose features this run stored.
        classes: Images of each class, by name.
        notes: Sentences about the labels.
    """

    files: int = 0
    images: int = 0
    duplicates: int = 0
    square: int = 0
    captioned: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    shards: int = 0
    encoded: int = 0
    reused: int = 0
    texts_encoded: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


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
    text: TextEncoder | None = None,
) -> Report | None:
    """Makes or completes a prepared data set. Interrupted at any moment, the same call continues, to the same bytes.

    A shard of which an image could not be decoded before gets another name for one run, see `renew`.

    Args:
        name: The name of the source, for dataset.json.
        encoder, preparation: How images become latents; see `encode.build_encoder`.
        shard_size: Files of the source per shard.
        workers: Threads that read and decode.
        state: This process among those that share the work.
        text: What encodes the captions; None: their features are not stored.

    Returns:
        The report; None on all ranks but the first.

    Raises:
        UserError: `out` holds something else, another process is preparing it, or there are no captions to encode.
        OSError: `out` cannot be written; what was there before is still whole then.
    """
    shards = out / SHARDS
    with one_sentence(out):
        on_rank0(lambda: refuse_foreign(out))  # Before a lock is left there.
        with locked_on_rank0(out, "a preparation"):
            on_rank0(lambda: begin(out, preparation))
            plans = plan_shards(hash_all(source, workers, state, progress), shard_size, preparation.digest)
            captions = [] if text is None else captions_of(plans)
            if text is not None and not captions:
                raise UserError(f"no image of {name} has a caption: omit --text-encoder")
            there = sorted(path.stem for path in shards.glob("*.jsonl"))
            whole = set(all_gather([stem for stem in shard_of_rank(there, state) if is_whole(shards, stem)]))
            plans = renew(shards, plans, whole, source, preparation, workers, state, progress)
            for plan in shard_of_rank([plan for plan in plans if plan.name in whole], state):
                refresh_index(shards, plan)
            missing = [plan for plan in plans if plan.name not in whole]
            store = read_store(shards, sorted(whole), {sha256 for plan in missing for sha256 in plan.owned})
            missing = shard_of_rank(missing, state)
            counts = Counter()
            with progress("encoding", sum(len(plan.owned) for plan in missing)) as done:
                for plan in missing:
                    counts += build_shard(shards, plan, source, encoder, preparation, store, workers, done)
            counts = sum(all_gather([counts]), Counter())
            report = only_on_rank0(lambda: merge(out, plans, source, name, preparation))
            texts_encoded = 0 if text is None else store_features(out, captions, text, state, progress)
            if report is not None:
                report.encoded, report.reused = counts["encoded"], counts["reused"]
                report.texts_encoded = texts_encoded
            return report


def refuse_foreign(out: Path) -> None:
    """Raises UserError for a folder that holds something else than prepared data."""
    if out.exists() and read_settings(out) is None and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(f"{out} holds something else than a prepared data set; choose another --out")


def begin(out: Path, preparation: Preparation) -> None:
    """Writes the settings and removes unfinished files. Raises UserError if the folder was prepared differently."""
    kept = read_settings(out)
    if kept is not None and any((out / SHARDS).glob("*.jsonl")):
        before, now = asdict(kept), asdict(preparation)
        changed = [key for key in now if key != "autoencoder" and before[key] != now[key]]
        if changed:
            told = shortened([f"{key.replace('_', ' ')} {before[key]}, not {now[key]}" for key in changed])
            raise UserError(f"{out} was prepared with {told}; choose another --out")
    if kept != preparation:  # Weights may have moved to another place.
        write_text(out / SETTINGS, json.dumps(asdict(preparation), indent=1))
    remove_drafts(out)
    remove_drafts(out / SHARDS)


def hash_all(source: Source, workers: int, state: Ranks, progress: Progress) -> list[File]:
    """Reads and hashes every file of the source, in order."""
    indices = shard_of_rank(range(len(source.items)), state)
    hashed = []
    with progress("reading", len(indices)) as done:
        for index, file in zip(indices, in_threads(workers, partial(hash_file, source), indices), strict=True):
            hashed.append((index, file))
            done(1)
    return [file for _, file in sorted(all_gather(hashed), key=lambda pair: pair[0])]


def renew(
    folder: Path,
    plans: Sequence[ShardPlan],
    whole: Collection[str],
    source: Source,
    preparation: Preparation,
    workers: int,
    state: Ranks,
    progress: Progress,
) -> list[ShardPlan]:
    """Gives another name to shards that lack an image which can be decoded now, as with a package installed since.

    Under its old name, such a shard stays as it is until a set without it is finished. The next run undoes this.
    """
    there = shard_of_rank([plan for plan in plans if plan.name in whole], state)
    outdated = []
    with progress("trying what was skipped", len(there)) as done:
        for plan in there:
            work = partial(decode_owned, plan, source, preparation)
            if any(variants for _, variants in in_threads(workers, work, skipped_contents(folder, plan))):
                outdated.append(plan.name)
            done(1)
    outdated = set(all_gather(outdated))
    return [replace(plan, settings=f"{plan.settings} renewed") if plan.name in outdated else plan for plan in plans]


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
    stored = {sha256: store[sha256] for sha256 in plan.owned if sha256 in store}
    outcomes = {sha256: outcome for sha256, (_, outcome) in stored.items()}
    arrays = read_stored(stored.values())
    done(len(stored))
    missing = [sha256 for sha256 in plan.owned if sha256 not in store]

    def images() -> Iterator:
        work = partial(decode_owned, plan, source, preparation)
        for sha256, (outcome, variants) in zip(missing, in_threads(workers, work, missing), strict=True):
            outcomes[sha256] = outcome
            for variant, array in variants.items():
                outcome["variants"][variant]["tensor"] = f"{sha256}.{variant}"
                yield f"{sha256}.{variant}", array
            done(1)

    encoded = dict(encode_all(encoder, images()))
    lost = {content_of(name) for name, latent in encoded.items() if latent is None}
    if preparation.kind == "moments" and 2 * len(lost) > len(missing):
        raise UserError(
            f"the autoencoder {preparation.autoencoder} gives latents that are not finite (NaN or infinity) for "
            f"{len(lost)} of {len(missing)} images, which are not stored: get its float32 weights, or use another one"
        )
    outcomes |= {sha256: {"skipped": NOT_FINITE} for sha256 in lost}
    arrays |= {name: latent for name, latent in encoded.items() if latent is not None and content_of(name) not in lost}
    write_shard(folder, plan, arrays, outcomes)
    return Counter(encoded=sum("variants" in outcomes[sha256] for sha256 in missing), reused=len(stored))


def decode_owned(plan: ShardPlan, source: Source, preparation: Preparation, sha256: str) -> Decoded:
    """Decodes a content that a shard owns. Raises UserError if the source holds another one by now."""
    index = plan.owned[sha256]
    try:
        content = source.read(index)
    except (OSError, UnreadableImage):
        content = b""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{source.items[index].id} changed while it was being prepared; run the same command again")
    return decode_variants(content, preparation)


def merge(out: Path, plans: Sequence[ShardPlan], source: Source, source_name: str, preparation: Preparation) -> Report:
    """Writes index.jsonl, dataset.json and index.columns, then removes shards that do not belong to them."""
    report = Report(shards=len(plans), notes=[*source.notes, *changed_classes(out, source.class_names)])
    labels: list[int] = []
    index = hashlib.sha256()
    headers = []

    def write_index(draft: Path) -> None:
        with draft.open("wb") as file:
            for line in merged_lines(out / SHARDS, plans, headers):
                report.files += 1
                report.duplicates += "duplicate_of" in line
                if "skipped" in line:
                    report.skipped.append((line["id"], line["skipped"]))
                else:
                    labels.append(line["label"])
                    report.square += "crop" in line["variants"]
                    report.captioned += "captions" in line
                content = json.dumps(line).encode() + b"\n"
                index.update(content)
                file.write(content)
        if not labels:  # The files that were there before are worth more.
            told = shortened([f"{name}: {reason}" for name, reason in report.skipped])
            raise UserError(f"no image can be read in {source_name}: {told or 'there are no files'}")

    dataset = asdict(preparation)

    def write_dataset(draft: Path) -> None:
        report.images, report.classes = len(labels), count_classes(labels, source.class_names)
        counts = {"files": report.files, "images": report.images, "duplicates": report.duplicates}
        shards = [{"file": head["shard"], "sha256": head["sha256"], "bytes": head["bytes"]} for head in headers]
        dataset.update(
            source=source_name,
            class_names=source.class_names,
            counts=counts | {"skipped": len(report.skipped)},
            skipped_by_reason=count_reasons(report.skipped),
            shards=shards,
            index_sha256=index.hexdigest(),
        )
        draft.write_text(json.dumps(dataset, indent=1), encoding="utf-8")

    write_files({out / INDEX: write_index, out / DATASET: write_dataset})
    write_columns(out, dataset)
    kept = {path.name for plan in plans for path in shard_files(out, plan.name)}
    for path in (out / SHARDS).iterdir():
        if SHARD_FILE.fullmatch(path.name) and path.name not in kept:
            path.unlink()
    return report


def merged_lines(folder: Path, plans: Sequence[ShardPlan], headers: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields the lines of all shards, a repeated content with the outcome of its first file; collects the headers."""
    counts = Counter(sha256 for plan in plans for _, sha256 in plan.files if sha256)
    first: dict[str, dict[str, Any]] = {}
    for plan in plans:
        header, lines = read_shard_index(shard_files(folder, plan.name)[1])
        headers.append(header)
        for line in lines:
            sha256: str = line.get("sha256", "")
            if sha256 in first:
                line |= {key: first[sha256][key] for key in (*OUTCOME, "shard") if key in first[sha256]}
                line["duplicate_of"] = first[sha256]["id"]
            elif "variants" in line:
                line["shard"] = header["shard"]
            if counts[sha256] > 1:
                first.setdefault(sha256, line)
            yield line


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
        f"the classes have changed ({'; '.join(parts) or 'another order'}): a training on the earlier ones cannot be "
        "resumed with these"
    )


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

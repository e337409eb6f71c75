"""Stores the features of captions: what is not there yet, file by file, shared among the processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from ..data.prepared import SETTINGS
from ..data.text_features import TextFeatures, feature_files, features_folder, is_whole, write_features
from ..distributed.ranks import Ranks, all_gather, on_rank0, shard_of_rank
from ..errors import UserError
from ..system.atomic import remove_drafts, write_text
from ..text import TextEncoder, encoder_digest
from .items import Progress
from .shards import ShardPlan

CAPTIONS_PER_FILE = 4096
# Captions that an encoder is given at a time.
CAPTIONS_PER_PASS = 128


def captions_of(plans: Iterable[ShardPlan]) -> list[str]:
    """Returns the different captions of all images that can be read, in the order in which they first occur."""
    files = (file for plan in plans for file in plan.files)
    return list(dict.fromkeys(caption for item, sha256 in files if sha256 for caption in item.captions))


def store_features(out: Path, captions: Sequence[str], text: TextEncoder, state: Ranks, progress: Progress) -> int:
    """Stores the features of captions, and of the empty one, as far as they are not there; returns how many were not.

    Every process has to call this. Interrupted, the same call continues with the next file.
    """
    digest = encoder_digest(text.name)
    folder = features_folder(out, digest)

    def begin() -> None:
        settings = {"encoder": text.name, "sha256": digest, "channels": text.channels}
        write_text(folder / SETTINGS, json.dumps(settings, indent=1))
        remove_drafts(folder)

    def remove(damaged: Sequence[Path]) -> None:
        for path in damaged:
            path.unlink()

    on_rank0(begin)
    damaged = all_gather([path for path in shard_of_rank(feature_files(folder), state) if not is_whole(path)])
    on_rank0(lambda: remove(damaged))
    stored = TextFeatures(folder)
    missing = [caption for caption in ("", *captions) if caption not in stored]
    parts = [missing[i : i + CAPTIONS_PER_FILE] for i in range(0, len(missing), CAPTIONS_PER_FILE)]
    parts = shard_of_rank(parts, state)
    with progress("encoding captions", sum(map(len, parts))) as done:
        for part in parts:
            write_features(folder, part, list(encoded(text, part, done)))
    state.wait_for_everyone()
    return len(missing)


def encoded(text: TextEncoder, captions: Sequence[str], done: Callable[[int], None]) -> Iterator[np.ndarray]:
    """Yields the features of each caption, (tokens, channels) float16. Raises UserError if they are not finite so."""
    for first in range(0, len(captions), CAPTIONS_PER_PASS):
        some = captions[first : first + CAPTIONS_PER_PASS]
        for caption, features in zip(some, text.encode(some), strict=True):
            half = features.to(torch.float16)
            if not half.isfinite().all():
                raise UserError(
                    f"the text encoder {text.name} gives features that are not finite in float16, of {caption[:60]!r}: "
                    "omit --text-encoder, so that training encodes the captions itself"
                )
            yield half.cpu().numpy()
        done(len(some))

"""Samples that a model makes: for each way of sampling and each size its pictures, and what a stamp says of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..autoencoder import KLAutoencoder, Pixels
from ..checkpoints.model_folder import Pretrained
from ..checkpoints.state_dict import weights_digest
from ..distributed.ranks import Ranks
from ..generate import Sampling, Wish
from ..hashes import json_digest
from ..model.presets import architecture_of
from .generation import GeneratedPictures, make_pictures
from .results import CLASSES, LABELS, OWN_CHOICE, class_counts
from .run import Progress, Samples
from .wishes import LABEL_SCHEME, SEED_SCHEME, SizeWish, balanced_wishes

FORMAT = 1


def make_samples(
    pretrained: Pretrained,
    codec: Pixels | KLAutoencoder,
    samplings: Sequence[Sampling],
    sizes: Sequence[SizeWish],
    number: int,
    *,
    name: str,
    settings: dict[str, Any],
    out: Path,
    state: Ranks,
    progress: Progress,
) -> list[Samples]:
    """`number` pictures of each sampling and size, in folders of `out` that are named by all they depend on.

    name: of the model; settings: see `all_of`. Raises ValueError for impossible sizes.
    """
    samples = []
    for sampling in samplings:
        for size in sizes:
            wishes = balanced_wishes(pretrained, number, size, settings["seed"], codec.factor)
            own = settings | {"size": str(size), "sampling": asdict(sampling)}
            folder = out / f"{str(size).replace(':', '-')}-{json_digest(own)[:12]}"
            pictures = GeneratedPictures(name, folder, wishes, pretrained.class_names, codec.factor)
            with progress(f"making {size} at {sampling.guidance:g}", number) as done:
                make_pictures(pictures, pretrained, codec, sampling, own, state, done)
            about: dict[str, Any] = {"model": name, "pictures": str(folder), "model_calls": sampling.model_calls}
            about[LABELS] = asked_for(wishes, pretrained.model.config.num_classes)
            about[CLASSES] = list(pretrained.class_names) or None
            samples.append(
                Samples(
                    pictures=pictures,
                    chosen=np.arange(number),
                    size=size.pixels,
                    called=str(size),
                    about=about | {key: value for key, value in own.items() if key not in ("format", "size", LABELS)},
                )
            )
    return samples


def all_of(pretrained: Pretrained, codec: Pixels | KLAutoencoder, precision: str, seed: int) -> dict[str, Any]:
    """What a model's images depend on besides their sampling and size.

    precision: of the model's weights, which decides with them.
    """
    return {
        "format": FORMAT,
        "model_sha256": model_digest(pretrained),
        "autoencoder_sha256": codec.digest() if isinstance(codec, KLAutoencoder) else None,
        "precision": precision,
        "seed": seed,
        "labels": LABEL_SCHEME,
        "seeds": SEED_SCHEME,
    }


def asked_for(wishes: Sequence[Wish], classes: int) -> str:
    """How often each class is asked for, as a stamp says it."""
    return class_counts(np.array([wish.label for wish in wishes]), classes) or OWN_CHOICE


def model_digest(pretrained: Pretrained) -> str:
    """SHA-256 over architecture, configuration and weights as they compute."""
    config = pretrained.model.config
    about = json.dumps([architecture_of(config), asdict(config)], sort_keys=True)
    return weights_digest(pretrained.model.state_dict(), about)

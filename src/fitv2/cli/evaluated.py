"""What `fitv2 evaluate` is given: models, images, sizes and ways to compare, from their names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from .sampling import parse_size

if TYPE_CHECKING:
    from ..evaluation.run import Evaluation, Progress, Samples
    from ..evaluation.wishes import SizeWish


def is_model(name: str) -> bool:
    """Whether it is anything that makes pictures; else it should be pictures."""
    from ..checkpoints.model_folder import is_own_model

    # Of a saved pipeline, of checkpoints, of a run that has no model yet; prepared pictures, too, have shards.
    marks = ("model_index.json", "ema.safetensors", "shards/.metadata", "log.jsonl")
    return is_own_model(name) or any((Path(name) / mark).exists() for mark in marks)


def parse_size_wish(text: str) -> SizeWish:
    """HxW, own, own:SCALE, and either of the last two with -turned."""
    from ..evaluation.wishes import SizeWish

    word, turned, _ = text.partition("-turned")
    word, _, scale = word.partition(":")
    if word != "own":
        return SizeWish(parse_size(text))
    try:
        factor = float(scale) if scale else 1.0
    except ValueError:
        factor = 0.0
    if not 0 < factor < 100:
        raise UserError(f"{text!r} is not a size; write HEIGHTxWIDTH, own, or own:1.5 for sizes of training enlarged")
    return SizeWish(scale=factor, turned=bool(turned))


def build_evaluation(
    reference: str,
    extractor: str | None,
    inception_weights: Path | None,
    metrics: str,
    protocol: str | None,
    out: Path,
    device: str,
    progress: Progress,
) -> Evaluation:
    """Raises ValueError for what is not there, or not to be had together."""
    from ..evaluation.extractors import load_extractor
    from ..evaluation.references import default_extractor, open_reference
    from ..evaluation.run import Evaluation
    from ..evaluation.suite import METRICS
    from ..evaluation.summary import cache_folder

    chosen = [name.strip() for name in metrics.split(",")]
    if unknown := [name for name in chosen if name not in METRICS]:
        raise UserError(f"there is no metric {unknown[0]!r}; choose from {', '.join(METRICS)}")
    network = extractor or default_extractor(reference, inception_weights)
    return Evaluation(
        extractor=load_extractor(network, device, inception_weights),
        reference=open_reference(reference, cache_folder()),
        metrics=chosen,
        protocol=protocol,
        cache=cache_folder(),
        kept=out / "features",
        progress=progress,
    )


def find_samples(name: str, wanted: list[SizeWish], num: int | None, cache: Path) -> list[Samples]:
    """Of pictures that are there already."""
    from ..evaluation.pictures import is_garments, open_pictures
    from ..evaluation.run import given_samples

    if not is_garments(name) and not Path(name).exists():
        raise UserError(f"there is no model, folder of pictures or archive {name!r}; builtin:fashion ships with fitv2")
    if any(wish.pixels is None for wish in wanted):
        raise UserError(f"--size own is for models; the pictures of {name} have the sizes that they have")
    return list(given_samples(open_pictures(name, cache), [wish.pixels for wish in wanted], num))

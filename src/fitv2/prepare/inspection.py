"""What a preparation made of each image: a table of all files, the figures that sum it up, and whether it is whole."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.dataset import evenly
from ..data.labelling import count_classes
from ..data.latent_shards import LatentShards
from ..data.packing import packing_efficiency, plan_packs
from ..data.prepared import SETTINGS, SHARDS, Preparation, read_dataset, read_index, read_json
from ..data.preprocessing import MAX_STRETCH
from ..data.text_features import TEXT, TextFeatures, feature_files, is_whole
from ..errors import UserError
from ..legacy import COUNTS
from ..messages import counted
from ..system.atomic import write_file
from .shards import is_as_written

TABLE = "images.csv"
# Of each variant of an image: columns of the table.
NUMBERS = ("height", "width", "new_height", "new_width", "tokens", "scale", "cropped", "stretched")
# Aspects (width / height) and fractions cropped, by which images are counted.
ASPECTS = (0, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 4 / 5, 5 / 4, 3 / 2, 2, 3, 4, float("inf"))
CROPPED = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1)
TOKEN_BINS = 10
# Captions that are shown, of images evenly spread over the set.
EXAMPLES = 5


@dataclass(frozen=True)
class Inspection:
    """The images of a prepared data set, as arrays.

    Attributes:
        labels: (N,) of the images.
        first: (M,) bool, whether a variant is the first of its image.
        is_crop: (M,) bool.
        numbers: (M,) of every variant, by the names of NUMBERS.
    """

    preparation: Preparation
    dataset: dict[str, Any]
    labels: np.ndarray
    first: np.ndarray
    is_crop: np.ndarray
    numbers: dict[str, np.ndarray]

    def sizes(self, prefix: str = "") -> np.ndarray:
        """Returns (N, 2) heights and widths of the images; with "new_" (M, 2), those of their variants."""
        sizes = np.stack([self.numbers[f"{prefix}height"], self.numbers[f"{prefix}width"]], 1)
        return sizes if prefix else sizes[self.first]


def inspect(folder: Path, out: Path) -> Inspection:
    """Reads the index, and writes the table of all files into `out`. Raises UserError if `folder` is not prepared."""
    preparation, dataset = read_dataset(folder)
    names, found = dataset["class_names"], array("d")

    def write(draft: Path) -> None:
        # File names and labels may hold what is not text.
        with draft.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            table = csv.writer(file)
            table.writerow(["id", "class", "skipped", "variant", *NUMBERS])
            for line in read_index(folder, dataset):
                if "skipped" in line:
                    table.writerow([line["id"], "", line["skipped"], "", *[""] * len(NUMBERS)])
                    continue
                name = names[line["label"]] if names else ""
                for number, (variant, stored) in enumerate(line["variants"].items()):
                    row = numbers_of(line["size"], variant, stored, preparation.patch)
                    found.extend((line["label"], number == 0, variant == "crop", *row))
                    table.writerow([line["id"], name, "", variant, *(round(value, 4) for value in row)])

    write_file(out / TABLE, write)
    labels, first, is_crop, *columns = np.array(found).reshape(-1, 3 + len(NUMBERS)).T
    numbers: dict[str, np.ndarray] = dict(zip(NUMBERS, columns, strict=True))
    first = first.astype(bool)
    return Inspection(preparation, dataset, labels[first].astype(int), first, is_crop.astype(bool), numbers)


def numbers_of(size: Sequence[int], variant: str, stored: dict[str, Any], patch: int) -> tuple[float, ...]:
    """Returns the NUMBERS of a variant: scale is linear, `cropped` the fraction lost, `stretched` the change of aspect.

    Args:
        size: Height and width of the image.
        stored: The variant's entry in the index.
        patch: Pixels that a token's side covers.
    """
    (height, width), (new_height, new_width) = size, stored["size"]
    # Older preparations stretch instead of cropping, and have no entry about a crop.
    cropped = 1 - min(height, width) / max(height, width) if variant == "crop" else stored.get("cropped", 0.0)
    rows, columns = new_height / height, new_width / width
    # The part that a crop keeps has the new aspect.
    stretched = 0.0 if cropped or variant == "crop" else max(rows / columns, columns / rows) - 1
    scale = (rows * columns / (1 - cropped)) ** 0.5
    return height, width, new_height, new_width, new_height * new_width // patch**2, scale, cropped, stretched


def histogram(values: np.ndarray, edges: Sequence[float], whole: bool = False) -> dict[str, int]:
    """Counts how many values lie in each range; ranges of whole numbers are named by their first and last."""

    def name(low: float, high: float) -> str:
        if whole:
            return f"{low} to {high - 1}"
        return f"above {low:.2g}" if high == float("inf") else f"{low:.2g} to {high:.2g}"

    counts = np.histogram(values, np.array(edges))[0].tolist()
    return {name(low, high): count for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)}


def packing(data: LatentShards, budget: int | None) -> dict[str, Any]:
    """Plans the packs of a first epoch; the budget is by default that of ten of the longest images.

    Raises UserError if the longest image exceeds the budget.
    """
    lengths = data.first_hw.prod(1)
    longest = int(lengths.max())
    budget = budget or 10 * longest
    if longest > budget:
        needed = f"the longest image has {counted(longest, 'token')}; give that many or more"
        raise UserError(f"--max-tokens-per-batch {budget}: {needed}")
    packs = plan_packs(lengths, budget, seed=0, epoch=0)
    return {"budget": budget, "packs": len(packs), "packing_efficiency": packing_efficiency(lengths, packs, budget)}


def captions(data: LatentShards) -> dict[str, Any]:
    """Returns how many images have captions, how long these are, and the encoders whose features of them are stored."""
    words = [len(caption.split()) for image in range(len(data)) for caption in data.columns.captions(image)]
    with_one = np.flatnonzero(np.diff(data.columns.counts))
    few = with_one[evenly(len(with_one), EXAMPLES)]
    return {
        "images": len(with_one),
        "captions": len(words),
        "mean_words": round(sum(words) / max(len(words), 1), 2),
        "examples": [data.columns.captions(image)[0] for image in few.tolist()],
        "encoders": [features_of(path.parent) for path in sorted((data.root / TEXT).glob(f"*/{SETTINGS}"))],
    }


def features_of(folder: Path) -> dict[str, Any]:
    """Returns what there is of the features of one encoder: its name, the number of captions, and bytes."""
    size = sum(path.stat().st_size for path in feature_files(folder))
    name = read_json(folder / SETTINGS).get("encoder")
    return {"encoder": name, "captions": len(TextFeatures(folder)), "bytes": size}


def summary(inspection: Inspection) -> dict[str, Any]:
    """Returns all figures, ready for JSON. Triples are smallest, median and largest."""
    numbers, dataset, is_crop = inspection.numbers, inspection.dataset, inspection.is_crop
    height, width = inspection.sizes().T
    most, crops = inspection.preparation.max_tokens, numbers["cropped"]
    token_edges = [*range(1, most + 1, max(1, -(-most // TOKEN_BINS))), most + 1]
    variants = {"resize": int((~is_crop).sum()), "crop": int(is_crop.sum())}
    counts: dict[str, int] = dataset["counts"]
    spread = {"height": height, "width": width}
    spread |= {name: numbers[name] for name in ("new_height", "new_width", "scale", "tokens")}
    return {
        **{COUNTS.get(key, key): count for key, count in counts.items()},
        "skipped_by_reason": dataset["skipped_by_reason"],
        "variants": {variant: count for variant, count in variants.items() if count},
        **{name: np.quantile(values, (0, 0.5, 1)).round(4).tolist() for name, values in spread.items()},
        "stretched_visibly": int((numbers["stretched"] > MAX_STRETCH + 1e-9).sum()),
        "aspects": histogram(width / height, ASPECTS),
        "token_counts": histogram(numbers["tokens"], token_edges, whole=True),
        "cropped": histogram(crops[is_crop | (crops > 0)], CROPPED),
        "classes": count_classes(inspection.labels, dataset["class_names"]),
        "bytes": sum(shard["bytes"] for shard in dataset["shards"]),
    }


def verify(folder: Path, done: Callable[[int], None]) -> list[str]:
    """Reads every shard and all features of captions; returns the files that are missing or have another hash than the
    data set says. `done` gets the number of shards just read. Raises UserError if the preparation is unfinished.
    """
    damaged: list[str] = []
    for shard in read_dataset(folder)[1]["shards"]:
        if not is_as_written(folder / SHARDS / shard["file"], shard["sha256"]):
            damaged.append(shard["file"])
        done(1)
    return damaged + [path.name for path in sorted((folder / TEXT).glob("*/*.safetensors")) if not is_whole(path)]

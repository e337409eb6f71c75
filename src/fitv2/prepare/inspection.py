"""What a preparation made of each picture: a table of all of them, and the figures that sum it up."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import write_file
from ..data.labelling import count_classes
from ..data.latents import LatentShards
from ..data.packing import plan_packs, real_share
from ..data.prepared import Preparation, read_dataset, read_index

TABLE = "pictures.csv"
COLUMNS = ("id", "class", "skipped", "variant", "height", "width", "new_height", "new_width")
COLUMNS += ("tokens", "scale", "cropped", "stretched")
# Aspects (width / height) and shares cropped, by which pictures are counted.
ASPECTS = (0, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 4 / 5, 5 / 4, 3 / 2, 2, 3, 4, float("inf"))
CROPPED = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1)
# Flooring to whole patches changes the aspect a little; beyond this people would see it.
VISIBLE_STRETCH = 0.1
TOKEN_BINS = 10


@dataclass
class Inspection:
    """Per picture: size (height, width), label. Per variant: its kind, new size, tokens, linear scale, the share of the
    picture that is cropped, and by how much its aspect has changed.
    """

    preparation: Preparation
    dataset: dict[str, Any]
    sizes: list[tuple[int, int]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    variants: list[str] = field(default_factory=list)
    new_sizes: list[tuple[int, int]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    crops: list[float] = field(default_factory=list)
    stretches: list[float] = field(default_factory=list)

    @property
    def classes(self) -> dict[str, int]:
        """Pictures of each class, in the order of the labels."""
        return count_classes(self.labels, self.dataset["class_names"])

    @property
    def aspects(self) -> dict[str, int]:
        """Pictures by width / height."""
        height, width = np.array(self.sizes).T
        return counted(width / height, ASPECTS)

    @property
    def token_counts(self) -> dict[str, int]:
        """Variants by number of tokens."""
        step = max(1, -(-self.preparation.max_tokens // TOKEN_BINS))
        edges = [*range(1, self.preparation.max_tokens + 1, step), self.preparation.max_tokens + 1]
        return counted(np.array(self.tokens), edges, whole=True)

    @property
    def crop_counts(self) -> dict[str, int]:
        """Cropped variants by the share of the picture that is lost."""
        cropped = [share for variant, share in zip(self.variants, self.crops, strict=True) if variant == "crop"]
        return counted(np.array(cropped), CROPPED)


def inspect(folder: Path, out: Path) -> Inspection:
    """Reads the index, and writes the table of all files into `out`. Raises ValueError if `folder` is not prepared."""
    preparation, dataset = read_dataset(folder)
    inspection = Inspection(preparation, dataset)

    def write(draft: Path) -> None:
        # File names may hold bytes that are no text.
        with draft.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.DictWriter(file, COLUMNS, restval="")
            table.writeheader()
            for line in read_index(folder, dataset):
                table.writerows(rows_of(line, inspection))

    write_file(out / TABLE, write)
    return inspection


def rows_of(line: dict[str, Any], inspection: Inspection) -> Iterator[dict[str, Any]]:
    """A row per variant of a picture, or one for a file that was skipped; counts them."""
    names = inspection.dataset["class_names"]
    if "skipped" in line:
        yield {"id": line["id"], "skipped": line["skipped"]}
        return
    common = {"id": line["id"], "class": names[line["label"]] if names else ""}
    height, width = line["size"]
    inspection.sizes.append((height, width))
    inspection.labels.append(line["label"])
    for variant, stored in line["variants"].items():
        new_height, new_width = stored["size"]
        cropped = 1 - min(height, width) / max(height, width) if variant == "crop" else 0.0
        rows, columns = new_height / height, new_width / width
        # What a crop keeps is a square, and stays one.
        stretched = max(rows / columns, columns / rows) - 1 if variant == "resize" else 0.0
        scale = (rows * columns / (1 - cropped)) ** 0.5
        tokens = new_height * new_width // inspection.preparation.patch**2
        inspection.new_sizes.append((new_height, new_width))
        inspection.variants.append(variant)
        inspection.tokens.append(tokens)
        inspection.scales.append(scale)
        inspection.crops.append(cropped)
        inspection.stretches.append(stretched)
        yield common | {
            **{"variant": variant, "height": height, "width": width, "new_height": new_height, "new_width": new_width},
            **{"tokens": tokens, "scale": round(scale, 4), "cropped": round(cropped, 4)},
            "stretched": round(stretched, 4),
        }


def counted(values: np.ndarray, edges: Sequence[float], whole: bool = False) -> dict[str, int]:
    """How many values lie in each range; whole numbers are told by the first and last of a range."""
    counts, _ = np.histogram(values, np.array(edges))
    return {
        range_name(low, high, whole): int(count) for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    }


def range_name(low: float, high: float, whole: bool) -> str:
    if whole:
        return f"{low} to {high - 1}"
    if high == float("inf"):
        return f"above {low:.2g}"
    return f"{low:.2g} to {high:.2g}"


def packing(folder: Path, budget: int | None) -> dict[str, Any]:
    """How well the packs of a first epoch are filled; by default a budget that holds ten of the longest pictures."""
    lengths = LatentShards(folder).epoch(0, 0).hw.prod(1)
    budget = budget or 10 * int(lengths.max())
    packs = plan_packs(lengths, budget, seed=0, epoch=0)
    return {"budget": budget, "packs": len(packs), "real_share": real_share(lengths, packs, budget)}


def quantiles(values: list) -> list[float]:
    """Smallest, median, largest."""
    return [round(float(value), 4) for value in np.quantile(values, (0, 0.5, 1))]


def summary(inspection: Inspection) -> dict[str, Any]:
    """All figures, as JSON takes them. Triples are smallest, median and largest."""
    height, width = zip(*inspection.sizes, strict=True)
    new_height, new_width = zip(*inspection.new_sizes, strict=True)
    dataset = inspection.dataset
    return {
        **dataset["counts"],
        "skipped_by_reason": dataset["skipped_by_reason"],
        "variants": dict(Counter(inspection.variants)),
        "height": quantiles(height),
        "width": quantiles(width),
        "new_height": quantiles(new_height),
        "new_width": quantiles(new_width),
        "scale": quantiles(inspection.scales),
        "tokens": quantiles(inspection.tokens),
        "stretched_visibly": sum(share > VISIBLE_STRETCH for share in inspection.stretches),
        "aspects": inspection.aspects,
        "token_counts": inspection.token_counts,
        "cropped": inspection.crop_counts,
        "classes": inspection.classes,
        "bytes": sum(shard["bytes"] for shard in dataset["shards"]),
    }

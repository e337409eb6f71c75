"""Model folders: weights in safetensors, and a config.json that says all that sampling needs to know."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .convert import load_strictly
from .data.dataset import Dataset
from .model.transformer import FiT, FiTConfig

BUILTIN = "builtin:"


@dataclass(frozen=True)
class Pretrained:
    """A network and what its data looked like.

    class_names: one per class, in order. shapes: per class (one entry for a set without classes) the (height, width)
    in latent pixels of its training pictures with their counts, most frequent first.
    """

    model: FiT
    class_names: list[str]
    shapes: list[list[tuple[int, int, int]]]

    @property
    def longest(self) -> int:
        """The most tokens that a training picture had."""
        return max(h * w for shapes in self.shapes for h, w, _ in shapes) // self.model.config.patch_size**2

    def label(self, name: str) -> int:
        """A class by name or number. Raises ValueError naming the classes."""
        if name in self.class_names:
            return self.class_names.index(name)
        if name.isdecimal() and int(name) < max(self.model.config.num_classes, 1):
            return int(name)
        known = ", ".join(f"{i} {known}" for i, known in enumerate(self.class_names)) or "none: it has no classes"
        raise ValueError(f"there is no class {name!r} in this model; its classes are {known}")


def shapes_of(dataset: Dataset, most: int = 20) -> list[list[tuple[int, int, int]]]:
    """The most frequent (height, width, count) in latent pixels, per class, as the first epoch sees them."""
    view = dataset.epoch(0, 0)
    counts: list[Counter] = [Counter() for _ in range(max(dataset.num_classes, 1))]
    for label, (h, w) in zip(view.labels.tolist(), (view.hw * dataset.patch_size).tolist(), strict=True):
        counts[label][h, w] += 1
    return [[(h, w, n) for (h, w), n in counter.most_common(most)] for counter in counts]


def save_pretrained(
    folder: Path, config: FiTConfig, weights: dict[str, Tensor], class_names: list[str], shapes, dtype: torch.dtype
) -> None:
    """Writes config.json and model.safetensors, the weights as `dtype`; a reader meets whole files at any moment."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"format": 1, "model": asdict(config), "class_names": class_names, "shapes": shapes}
    drafts = {name: folder / f".{name}.partial" for name in ("config.json", "model.safetensors")}
    drafts["config.json"].write_text(json.dumps(content, indent=1))
    save_file({k: v.detach().to(dtype).contiguous() for k, v in weights.items()}, drafts["model.safetensors"])
    for name, draft in drafts.items():
        draft.replace(folder / name)


def load_pretrained(name: str | Path) -> Pretrained:
    """`builtin:NAME`, a model folder, or a run's folder (its newest exported model), in float32 and eval mode.

    Raises ValueError when there is none or it is damaged.
    """
    name = str(name)
    if name.startswith(BUILTIN):
        with as_file(files("fitv2").joinpath("builtin", name.removeprefix(BUILTIN))) as folder:
            return read_folder(folder, name)
    return read_folder(Path(name) / "model" if (Path(name) / "model").is_dir() else Path(name), name)


def read_folder(folder: Path, name: str) -> Pretrained:
    config_file, weights_file = folder / "config.json", folder / "model.safetensors"
    if not (config_file.is_file() and weights_file.is_file()):
        raise ValueError(f"{name} is not a model: no config.json and model.safetensors in {folder}")
    try:
        content = json.loads(config_file.read_bytes())
        model = FiT(FiTConfig(**content["model"]))
        weights = load_file(weights_file)
        shapes = [[tuple(shape) for shape in of_class] for of_class in content["shapes"]]
        class_names = content["class_names"]
    except (ValueError, KeyError, TypeError, SafetensorError, OSError) as error:
        raise ValueError(f"the model in {folder} is damaged ({error!r}); copy or train it again") from None
    load_strictly(model, {key: tensor.float() for key, tensor in weights.items()})
    return Pretrained(model.eval(), class_names, shapes)

"""Model folders: weights in safetensors, and a config.json that says all that sampling needs to know."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .atomic import write_tensors, write_text
from .classes import Classes
from .data.dataset import Dataset
from .errors import UserError
from .model.config import NetworkConfig
from .model.network import Network, bare_model, model_of
from .model.presets import ARCHITECTURES, architecture_of

BUILTIN = "builtin:"
FORMAT = 1
# Enough for every size of a set like fashion; of a folder of photographs, the sizes that matter.
MOST_SHAPES = 500


@dataclass(frozen=True)
class Pretrained:
    """A network and what its data looked like.

    class_names: one per class, in order. shapes: per class (one entry for a set without classes) the (height, width)
    in latent pixels of its training pictures with their counts, the 500 most frequent first. autoencoder: the folder or
    hub id of the one whose latents these are; None where pixels are the latents.
    """

    model: Network
    class_names: list[str]
    shapes: list[list[tuple[int, int, int]]]
    autoencoder: str | None = None

    @property
    def classes(self) -> Classes:
        return Classes(self.model.config.num_classes, dict(enumerate(self.class_names)))


def shapes_of(dataset: Dataset) -> list[list[tuple[int, int, int]]]:
    """The most frequent (height, width, count) in latent pixels, per class, in one epoch; random scales draw others."""
    view = dataset.epoch(0, 0)
    counts: list[Counter] = [Counter() for _ in range(max(dataset.num_classes, 1))]
    for label, (h, w) in zip(view.labels.tolist(), (view.hw * dataset.patch_size).tolist(), strict=True):
        counts[label][h, w] += 1
    return [[(h, w, n) for (h, w), n in counter.most_common(MOST_SHAPES)] for counter in counts]


def save_pretrained(
    folder: Path,
    config: NetworkConfig,
    weights: dict[str, Tensor],
    class_names: list[str],
    shapes: Sequence,
    dtype: torch.dtype | None,
    autoencoder: str | None = None,
) -> None:
    """Writes config.json and model.safetensors, the weights as `dtype` (None: each as it is).

    A reader meets whole files at any moment.
    """
    content = {"format": FORMAT, "architecture": architecture_of(config), "model": asdict(config)}
    content["autoencoder"] = autoencoder
    content |= {"class_names": class_names, "shapes": shapes}
    write_text(folder / "config.json", json.dumps(content))
    write_tensors(folder / "model.safetensors", {key: tensor.to(dtype) for key, tensor in weights.items()})


def is_own_model(name: str | Path) -> bool:
    """Whether it is a built-in model, one of this project's folders, or a run's with one in it."""
    homes = (Path(name), Path(name) / "model")
    return str(name).startswith(BUILTIN) or any((home / "model.safetensors").is_file() for home in homes)


def load_pretrained(name: str | Path, dtype: torch.dtype | None = torch.float32) -> Pretrained:
    """`builtin:NAME`, a model folder, a run's folder (its newest exported model) or one of its checkpoints (the
    averaged weights), in `dtype` and eval mode; dtype None: its shapes alone, on the meta device. Raises ValueError
    when there is none or it is damaged.
    """
    name = str(name)
    if name.startswith(BUILTIN):
        with as_file(files("fitv2").joinpath("builtin", name.removeprefix(BUILTIN))) as folder:
            return read_model(folder / "config.json", folder / "model.safetensors", name, dtype)
    folder = Path(name)
    for average in (folder / "ema.safetensors", folder / "shards"):
        if average.exists():
            return read_model(folder.parent.parent / "model" / "config.json", average, name, dtype)
    folder = folder / "model" if (folder / "model").is_dir() else folder
    return read_model(folder / "config.json", folder / "model.safetensors", name, dtype)


def read_config(config_file: Path) -> tuple[dict[str, Any], NetworkConfig]:
    """What config.json says, and the network of it. Raises OSError, ValueError, KeyError or TypeError if damaged."""
    content = json.loads(config_file.read_bytes())
    if content["format"] != FORMAT:
        raise UserError(f"format {content['format']}, and this version reads {FORMAT}")
    return content, ARCHITECTURES[content.get("architecture", "FiTv2")](**content["model"])


def read_model(config_file: Path, weights_file: Path, name: str, dtype: torch.dtype | None) -> Pretrained:
    for path in (config_file, weights_file):
        if not path.exists():
            raise UserError(f"{name} is not a model: there is no {path}")
    try:
        content, config = read_config(config_file)
        weights = None if dtype is None else read_weights(weights_file, dtype)
        shapes = [[tuple(shape) for shape in of_class] for of_class in content["shapes"]]
        class_names = content["class_names"]
    except (ValueError, KeyError, TypeError, SafetensorError, OSError) as error:
        raise UserError(f"the model {name} is damaged ({error!r}); copy or train it again") from None
    model = bare_model(config) if weights is None else model_of(config, weights)
    return Pretrained(model, class_names, shapes, content.get("autoencoder"))


def read_weights(path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or the averaged weights of a checkpoint's folder of shards."""
    if path.is_dir():
        from .distributed_checkpoint import read_split  # Takes long to load, and few checkpoints have one.

        return {key: tensor.to(dtype) for key, tensor in read_split(path, "ema", lambda name: None).items()}
    # One by one and read, not mapped: never a second copy of all, whatever the dtypes.
    with safe_open(path, "pt", backend="pread") as file:
        return {key: file.get_tensor(key).to(dtype) for key in file.keys()}  # noqa: SIM118

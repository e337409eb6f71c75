"""Checkpoints, whole or absent: a folder of safetensors and JSON for each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..atomic import write_folder, write_tensors, write_text

PREFIX = "step-"


def save_checkpoint(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
    """One safetensors file per entry of `tensors` and state.json, as folder/step-<step>."""

    def write(partial: Path) -> None:
        for name, content in tensors.items():
            write_tensors(partial / f"{name}.safetensors", content)
        write_text(partial / "state.json", json.dumps({"step": step, **state}, indent=1))

    write_folder(folder / f"{PREFIX}{step:08d}", write)


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first, by step number."""
    numbers = {path: path.name.removeprefix(PREFIX) for path in folder.glob(f"{PREFIX}*")}
    found = [path for path, number in numbers.items() if number.isdecimal() and (path / "state.json").is_file()]
    return sorted(found, key=lambda path: int(numbers[path]))


def prune(folder: Path, keep: int) -> None:
    """Removes all but the newest `keep`."""
    for path in checkpoints(folder)[:-keep]:
        shutil.rmtree(path)


def read_tensors(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """One safetensors file. Raises ValueError when it is missing or damaged."""
    if not path.is_file():
        raise ValueError(f"{path} is not there; delete its folder to continue from the one before")
    try:
        return load_file(path, device=device)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete its folder to continue from the one before") from None


def read_state(path: Path) -> dict[str, Any]:
    """state.json of a checkpoint. Raises ValueError when damaged."""
    try:
        return json.loads((path / "state.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete the folder to continue from the one before") from None


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """An optimiser's per-parameter state as flat tensors named `<entry>.<parameter>`."""
    state = optimizer.state_dict()["state"]
    return {f"{entry}.{names[i]}": torch.as_tensor(value) for i, s in state.items() for entry, value in s.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    index = {name: i for i, name in enumerate(names)}
    for key, value in tensors.items():
        entry, _, name = key.partition(".")
        if name not in index:
            raise ValueError(f"the optimiser's checkpoint is of another network: it has {name}")
        state.setdefault(index[name], {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

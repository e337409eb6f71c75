"""Checkpoints, whole or absent: a folder for each, of JSON and of safetensors, or of shards where weights are split."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import errors
from ..atomic import begin_folder, finish_folder, flush, partial_folder, write_tensors, write_text
from ..checkpoints.sharded import read_split, write_split
from ..errors import UserError
from ..distributed.ranks import on_rank0
from ..distributed.fsdp import split_like

PREFIX = "step-"
SHARDS = "shards"


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], sharded: bool = False
) -> None:
    """Tensors in their parts and state.json, as folder/step-<step>; every process has to call this.

    The first process writes a safetensors file per part; with `sharded`, where no process has whole tensors, each
    writes its own. Raises OSError in all when one cannot; nothing but the new checkpoint is then missing.
    """
    target = folder / f"{PREFIX}{step:08d}"

    def begin() -> Path:
        for abandoned in folder.glob(f".{PREFIX}*.partial"):  # By a process that was killed.
            shutil.rmtree(abandoned)
        return begin_folder(target)

    def finish() -> None:
        if sharded:
            flush(partial / SHARDS)
        else:
            for part, content in tensors.items():
                write_tensors(partial / f"{part}.safetensors", content)
        write_text(partial / "state.json", json.dumps({"step": step, **state}, indent=1))
        finish_folder(target)

    partial = on_rank0(begin)
    try:
        if sharded:
            named = {f"{part}.{name}": t for part, content in tensors.items() for name, t in content.items()}
            write_split(partial / SHARDS, named)
        on_rank0(finish)
    finally:
        if PartialState().is_main_process:
            shutil.rmtree(partial, ignore_errors=True)


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first, by step number."""
    numbers = {path: path.name.removeprefix(PREFIX) for path in folder.glob(f"{PREFIX}*")}
    found = [path for path, number in numbers.items() if number.isdecimal() and (path / "state.json").is_file()]
    return sorted(found, key=lambda path: int(numbers[path]))


def prune(folder: Path, keep: int) -> None:
    """Removes all but the newest `keep`."""
    for path in checkpoints(folder)[:-keep]:
        # Renamed first: stopped in between, what is left is no checkpoint, and `save_checkpoint` removes it.
        shutil.rmtree(path.rename(partial_folder(path)))


def newest_state(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint below `folder` and its state.json, if there is one. Raises UserError when damaged."""
    found = checkpoints(folder)
    return (found[-1], read_state(found[-1])) if found else None


def damaged(path: Path, why: object) -> UserError:
    """path: a file or folder in a checkpoint."""
    return errors.damaged(path, why, "delete its folder to continue from the one before")


def read_part(checkpoint: Path, part: str, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """One part of a checkpoint by name, whatever number of processes wrote it; every process has to call this.

    Where weights are split over processes, so is what belongs to them: by the names of `parameters`, or those with an
    entry's name in front. Raises ValueError when it is missing or damaged.
    """

    def like(name: str) -> Tensor | None:
        return parameters.get(name, parameters.get(name.partition(".")[2]))

    if not (checkpoint / SHARDS).is_dir():
        return read_tensors(checkpoint / f"{part}.safetensors", like)
    try:
        return read_split(checkpoint / SHARDS, part, like)
    except UserError as error:
        raise damaged(checkpoint / SHARDS, error) from None


def restore(checkpoint: Path, part: str, parameters: dict[str, Tensor], load: Callable[[dict[str, Tensor]], None]):
    """Gives one part of a checkpoint to `load`. Raises UserError, naming the file, when it is damaged or does not fit.

    Every process has to call this.
    """
    tensors = read_part(checkpoint, part, parameters)
    try:
        load(tensors)
    except UserError as error:
        raise damaged(
            checkpoint / (SHARDS if (checkpoint / SHARDS).is_dir() else f"{part}.safetensors"), error
        ) from None


def read_tensors(path: Path, like: Callable[[str], Tensor | None]) -> dict[str, Tensor]:
    """One safetensors file, each tensor split as `like` of its name is. Raises ValueError when missing or damaged."""
    if not path.is_file():
        raise UserError(f"{path} is not there; delete its folder to continue from the one before")
    try:
        # One by one and read, not mapped: where weights are split, no process holds all of them.
        with safe_open(path, "pt", backend="pread") as file:
            return {key: split_like(file.get_tensor(key), like(key)) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from None


def read_state(path: Path) -> dict[str, Any]:
    """state.json of a checkpoint. Raises UserError when damaged."""
    file = path / "state.json"
    try:
        state = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise damaged(file, error) from None
    if not isinstance(state, dict):
        raise damaged(file, "no JSON object")
    return state

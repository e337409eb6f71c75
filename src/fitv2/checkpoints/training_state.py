"""Checkpoints of a training: folders of JSON and safetensors, or of shards; each is complete or absent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from .. import errors
from ..distributed.parallel import split_like
from ..distributed.ranks import is_rank0, on_rank0
from ..errors import UserError
from ..system.atomic import begin_folder, finish_folder, flush, partial_folder, write_text
from .sharded import read_shards, write_shards
from .state_dict import read_safetensors, write_tensors

PREFIX = "step-"
SHARDS = "shards"


def save_checkpoint(
    folder: Path, step: int, parts: dict[str, dict[str, Tensor]], state: dict[str, Any], sharded: bool = False
) -> None:
    """Writes a checkpoint as folder/step-<step>. Every process has to call this.

    Args:
        folder: The folder of all checkpoints of a run.
        step: The number of the last step that was trained.
        parts: The tensors by part ("model", "ema", "optimizer") and name.
        state: Everything else that resuming needs, for state.json.
        sharded: Whether the tensors are sharded: each process then writes its own shards. Otherwise rank 0 writes a
            safetensors file for each part.

    Raises:
        OSError: A process cannot write; it is raised in all of them, and older checkpoints are untouched.
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
            for part, tensors in parts.items():
                write_tensors(partial / f"{part}.safetensors", tensors)
        write_text(partial / "state.json", json.dumps({"step": step, **state}, indent=1))
        finish_folder(target)

    partial = on_rank0(begin)
    try:
        if sharded:
            named = {f"{part}.{name}": t for part, tensors in parts.items() for name, t in tensors.items()}
            write_shards(partial / SHARDS, named)
        on_rank0(finish)
    finally:
        if is_rank0():
            shutil.rmtree(partial, ignore_errors=True)


def checkpoints(folder: Path) -> list[Path]:
    """Returns the complete checkpoints in a folder, in the order of their steps."""
    numbers = {path: path.name.removeprefix(PREFIX) for path in folder.glob(f"{PREFIX}*")}
    found = [path for path, number in numbers.items() if number.isdecimal() and (path / "state.json").is_file()]
    return sorted(found, key=lambda path: int(numbers[path]))


def prune(folder: Path, keep: int) -> None:
    """Removes all checkpoints but the newest `keep`."""
    for path in checkpoints(folder)[:-keep]:
        # Renamed first: if this stops halfway, the rest is no checkpoint, and `save_checkpoint` removes it.
        shutil.rmtree(path.rename(partial_folder(path)))


def newest_state(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Returns the newest checkpoint and its state.json; None if there is none. Raises UserError if it is damaged."""
    found = checkpoints(folder)
    return (found[-1], read_state(found[-1])) if found else None


def damaged(path: Path, why: object) -> UserError:
    """Returns the error for a file or folder in a checkpoint that cannot be used."""
    return errors.damaged(path, why, "delete its folder to continue from the one before")


def read_part(checkpoint: Path, part: str, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Reads one part of a checkpoint, whatever number of processes wrote it. Every process has to call this.

    Args:
        checkpoint: The folder of the checkpoint.
        part: "model", "ema" or "optimizer".
        parameters: The network's parameters. A tensor that belongs to a sharded one is sharded in the same way.

    Raises UserError if a file is missing or damaged.
    """

    def like(name: str) -> Tensor | None:
        return parameters.get(name, parameters.get(name.partition(".")[2]))  # exp_avg.NAME belongs to NAME.

    path = file_of(checkpoint, part)
    if not path.exists():
        raise UserError(f"{path} is not there; delete its folder to continue from the one before")
    try:
        if path.is_dir():
            return read_shards(path, f"{part}.", like)
        return read_safetensors(path, lambda name, tensor: split_like(tensor, like(name)))
    except (UserError, SafetensorError, OSError) as error:
        raise damaged(path, error) from None


def restore(
    checkpoint: Path, part: str, parameters: dict[str, Tensor], load: Callable[[dict[str, Tensor]], None]
) -> None:
    """Reads one part as `read_part` does and gives it to `load`, whose UserError then names the file."""
    tensors = read_part(checkpoint, part, parameters)
    try:
        load(tensors)
    except UserError as error:
        raise damaged(file_of(checkpoint, part), error) from None


def file_of(checkpoint: Path, part: str) -> Path:
    """Returns the file of one part of a checkpoint, or the folder of its shards."""
    shards = checkpoint / SHARDS
    return shards if shards.is_dir() else checkpoint / f"{part}.safetensors"


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Reads state.json of a checkpoint. Raises UserError if it is damaged."""
    file = checkpoint / "state.json"
    try:
        state = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise damaged(file, error) from None
    if not isinstance(state, dict):
        raise damaged(file, "no JSON object")
    return state

"""State dicts in the files that others write: safetensors, pickles (in which code is never run), shards; their hash."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .errors import UserError

DAMAGED = "cannot be read ({}): it is damaged, or not a checkpoint; copy or download it again"


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint: one file, or the shards that an index.json (or a folder with one) names.

    Raises ValueError when it is missing or damaged, or when a pickle holds more than tensors and plain containers.
    """
    if path.is_dir():
        indices = sorted(path.glob("*.index.json"))
        if len(indices) != 1:
            raise UserError(f"{path} holds {len(indices)} files *.index.json; name the checkpoint's own file")
        path = indices[0]
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    if path.suffix == ".json":
        return read_shards(path)
    # By content: the authors' own loader knows pickles that are called .safetensors.
    state = read_pickle(path) if is_pickle(path) else read_safetensors(path)
    # DistributedDataParallel puts this in front of all names.
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    return state


def is_pickle(path: Path) -> bool:
    """Whether a file begins as torch's archives or bare pickles do; safetensors begin with a length."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", *(bytes((0x80, protocol)) for protocol in range(6)))


def read_shards(index: Path) -> dict[str, Tensor]:
    """All shards of an index as Hugging Face writes it."""
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(names.values()), key=str)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} {DAMAGED.format(repr(error))}") from None
    state: dict[str, Tensor] = {}
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or shard.endswith(".json"):
            raise UserError(f"{index} names a shard that is no file of its own folder: {shard}")
        state |= read_state(index.parent / shard)
    if missing := sorted(names.keys() - state.keys()):
        raise UserError(f"the shards of {index} lack {', '.join(missing)}")
    return state


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} {DAMAGED.format(error)}") from None


def read_pickle(path: Path) -> dict[str, Tensor]:
    """A pickled state dict, memory-mapped where its format allows. No code in it is ever run."""
    try:
        if path.suffix == ".safetensors":  # Given the name, torch would go by it.
            with path.open("rb") as file:
                state = torch.load(file, map_location="cpu", weights_only=True)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        unknown = re.search(r"Unsupported (?:global|class|operand)[^\n.]*", str(error))
        reason = unknown.group() if unknown else "its pickle does not follow the rules"
        raise UserError(
            f"{path} is refused: it is damaged, or holds more than weights and could run code. Ask its maker for a "
            f".safetensors file ({reason})"
        ) from None
    except Exception as error:  # Of damaged pickles torch raises nearly any type, from KeyError to struct.error.
        raise UserError(f"{path} {DAMAGED.format(repr(error).partition(chr(10))[0])}") from None
    for name in ("state_dict", "ema", "model"):  # Training scripts put the weights beside other things.
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    pairs = state.items() if isinstance(state, dict) else [(None, None)]
    if not all(isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in pairs):
        raise UserError(f"{path} does not hold a state dict: names and tensors")
    return dict(state)


def weights_digest(weights: Mapping[str, Tensor], about: str = "") -> str:
    """SHA-256 over `about`, such as a configuration, and the names, types, shapes and numbers of the weights."""
    result = hashlib.sha256(about.encode())
    for name, weight in sorted(weights.items()):
        result.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        result.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return result.hexdigest()

"""State dicts in the files that others write: safetensors, pickles (in which code is never run), shards; their hash."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UserError

# What torch.compile, FSDP and checkpointing put into the names of the modules that they wrap.
WRAPPED = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
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
    return plain_names(read_pickle(path) if is_pickle(path) else read_safetensors(path))


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without what wrappers of torch add to names: of a module, or in front of all of them.

    Raises UserError where two tensors would then have the same name.
    """
    # Averaged models count their updates beside the weights, which are all behind one prefix.
    names = {key: WRAPPED.sub("", key) for key in state if key != "n_averaged"}
    while names and all(name.startswith("module.") for name in names.values()):
        names = {key: name.removeprefix("module.") for key, name in names.items()}
    if len(set(names.values())) < len(names):
        twice = next(name for name, count in Counter(names.values()).items() if count > 1)
        raise UserError(f"the checkpoint holds {twice} more than once, with and without the prefix of a wrapper")
    return {name: state[key] for key, name in names.items()}


def check_floating(state: Mapping[str, Tensor]) -> None:
    """Raises UserError for tensors that hold no numbers to compute with."""
    for key, tensor in state.items():
        if not tensor.is_floating_point():
            raise UserError(f"{key} holds {tensor.dtype}, which are no weights: the file is damaged")


def is_pickle(path: Path) -> bool:
    """Whether a file begins as torch's archives or bare pickles do, and not as safetensors.

    Safetensors begin with the length of a JSON header, whose first bytes may be those of a pickle.
    """
    with path.open("rb") as file:
        start = file.read(9)
    header = int.from_bytes(start[:8], "little")
    if start[8:] == b"{" and 8 + header <= path.stat().st_size:
        return False
    return start[:2] in (b"PK", *(bytes((0x80, protocol)) for protocol in range(6)))


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

"""State dicts in files: safetensors, pickles (in which no code is ever run), and shards of either; their digest.

Shards that several processes wrote are in `fitv2.checkpoints.sharded`.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from ..system.atomic import write_file

# What torch.compile, FSDP and checkpointing put into the names of the modules that they wrap.
WRAPPED = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
DAMAGED = "cannot be read ({}): it is damaged, or not a checkpoint; copy or download it again"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint of any origin on the CPU, without the prefixes of torch's wrappers.

    Args:
        path: A .safetensors file or a pickle, told apart by their content; an index.json of Hugging Face, which names
            such files; or a folder with one index.json.

    Raises:
        UserError: The file is missing or damaged, or a pickle holds more than tensors and plain containers.
    """
    if path.is_dir():
        indices = sorted(path.glob("*.index.json"))
        if len(indices) != 1:
            raise UserError(f"{path} holds {len(indices)} files *.index.json; name the checkpoint's own file")
        path = indices[0]
    return plain_names(read_file(path))


def read_file(path: Path) -> dict[str, Tensor]:
    """Reads what `read_state_dict` does from a file, with the names that it has."""
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    if path.suffix == ".json":
        return read_index(path)
    # By content: the authors' own loader knows pickles that are called .safetensors.
    if is_pickle(path):
        return read_pickle(path)
    try:
        return read_safetensors(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} {DAMAGED.format(error)}") from None


def read_safetensors(path: Path, place: Callable[[str, Tensor], Tensor] | None = None) -> dict[str, Tensor]:
    """Reads a safetensors file tensor by tensor: there is never a second copy of all of them.

    place: converts each tensor, given its name, for example to another dtype. Raises SafetensorError or OSError if the
    file is missing, damaged or may not be read.
    """
    # Read, not mapped: another process may replace the file.
    with safe_open(path, "pt", backend="pread") as file:
        tensors = ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
        return {name: tensor if place is None else place(name, tensor) for name, tensor in tensors}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file with usual permissions (the library makes it private). Raises OSError."""

    def write(draft: Path) -> None:
        draft.touch()
        mode = draft.stat().st_mode
        try:
            save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, draft)
        except SafetensorError as error:
            raise OSError(f"{path}: {error}") from None
        draft.chmod(mode)

    write_file(path, write)


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors without the prefixes of torch's wrappers. Raises UserError if two names become one."""
    # Averaged models count their updates beside the weights, which are all behind one prefix.
    names = {key: WRAPPED.sub("", key) for key in state if key != "n_averaged"}
    while names and all(name.startswith("module.") for name in names.values()):
        names = {key: name.removeprefix("module.") for key, name in names.items()}
    if len(set(names.values())) < len(names):
        twice = next(name for name, count in Counter(names.values()).items() if count > 1)
        raise UserError(f"the checkpoint holds {twice} more than once, with and without the prefix of a wrapper")
    return {name: state[key] for key, name in names.items()}


def check_floating(state: Mapping[str, Tensor]) -> None:
    """Raises UserError for a tensor that does not hold floating-point numbers."""
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


def read_index(index: Path) -> dict[str, Tensor]:
    """Reads all shards that an index.json of Hugging Face names."""
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted({str(shard) for shard in names.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} {DAMAGED.format(repr(error))}") from None
    state: dict[str, Tensor] = {}
    for shard in shards:
        if Path(shard).name != shard or shard.endswith(".json"):
            raise UserError(f"{index} names a shard that is no file of its own folder: {shard}")
        state |= read_file(index.parent / shard)
    if missing := sorted(names.keys() - state.keys()):
        raise UserError(f"the shards of {index} lack {', '.join(missing)}")
    return state


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Reads a pickled state dict, memory-mapped where its format allows. No code in it is ever run."""
    try:
        if path.suffix == ".safetensors":  # Given the name, torch would go by it.
            with path.open("rb") as file:
                state = torch.load(file, map_location="cpu", weights_only=True)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        unknown = re.search(r"Unsupported (?:global|class|operand)[^\n.]*", str(error))
        raise UserError(
            f"{path} is refused: it is damaged, or holds more than weights and could run code. Ask its maker for a "
            f".safetensors file ({unknown.group() if unknown else 'its pickle does not follow the rules'})"
        ) from None
    except Exception as error:  # Of damaged pickles torch raises nearly any type, from KeyError to struct.error.
        raise UserError(f"{path} {DAMAGED.format(repr(error).splitlines()[0])}") from None
    for name in ("state_dict", "ema", "model"):  # Training scripts put the weights beside other things.
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(t, Tensor) for k, t in state.items()):
        raise UserError(f"{path} does not hold a state dict: names and tensors")
    return dict(state)


def weights_digest(weights: Mapping[str, Tensor], about: str = "") -> str:
    """Returns the SHA-256 of `about`, such as a configuration, and of all names, dtypes, shapes and values."""
    result = hashlib.sha256(about.encode())
    for name, weight in sorted(weights.items()):
        result.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        result.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return result.hexdigest()

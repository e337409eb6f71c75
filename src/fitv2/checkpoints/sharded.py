"""Tensors that are split over processes on disk, with torch.distributed.checkpoint.

Each process writes and reads its own share; what one number of processes wrote, any other number reads. The folder's
`.metadata` is a pickle, in which no code is ever run.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from ..errors import UserError

# What reading finds in damaged files.
DAMAGES = (
    *(OSError, EOFError, RuntimeError, pickle.UnpicklingError),
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, ImportError),
)
# What .metadata consists of, beside the dtypes.
DESCRIPTION = {
    "pathlib": {"PosixPath", "WindowsPath"},
    "torch": {"Size"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        *("ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta"),
        *("TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
    },
    "torch.serialization": {"_get_layout"},
}


def write_split(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Every process has to call this, with the same names. Where one of them fails, OSError is raised in all."""
    try:
        dcp.save({name: t.detach() for name, t in tensors.items()}, storage_writer=dcp.FileSystemWriter(folder))
    except CheckpointException as error:
        raise OSError(first_failure(error)) from None


def read_split(folder: Path, part: str, like: Callable[[str], Tensor | None]) -> dict[str, Tensor]:
    """The tensors whose names begin with `part` and a dot, without that: each split as `like` of its name is.

    Raises ValueError when one cannot be read.
    """
    try:
        with (folder / ".metadata").open("rb") as file:
            DescriptionOnly(file).load()
        reader = dcp.FileSystemReader(folder)
        stored = reader.read_metadata().state_dict_metadata
        wanted = {
            key: empty(entry.size, entry.properties.dtype, like(key.removeprefix(f"{part}.")))
            for key, entry in stored.items()
            if key.startswith(f"{part}.")
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # A process alone reads alone.
            dcp.load(wanted, storage_reader=reader)
    except CheckpointException as error:
        raise UserError(first_failure(error)) from None
    except DAMAGES as error:
        raise UserError(repr(error)) from None
    return {key.removeprefix(f"{part}."): tensor for key, tensor in wanted.items()}


class DescriptionOnly(pickle.Unpickler):
    """Refuses all that does not describe tensors, so that the library may then read the same file."""

    def find_class(self, module: str, name: str):
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and name not in DESCRIPTION.get(module, ()):
            raise pickle.UnpicklingError(f"refused: it holds {module}.{name}, and could run code")
        return super().find_class(module, name)


def empty(size: torch.Size, dtype: torch.dtype, like: Tensor | None) -> Tensor:
    """Room for a tensor, laid out as `like` where it has the same shape."""
    fits = like is not None and like.shape == size
    return torch.empty_like(like, dtype=dtype) if fits else torch.empty(size, dtype=dtype)


def first_failure(error: CheckpointException) -> str:
    """In one line: the first process that failed, and why."""
    rank, (cause, _) = min(error.failures.items())
    return f"process {rank}: {cause!r}"

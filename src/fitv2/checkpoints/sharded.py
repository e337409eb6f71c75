"""Sharded tensors on disk, by torch.distributed.checkpoint: each process writes and reads its own shards.

What one number of processes wrote, any other number can read. The folder's `.metadata` is a pickle, in which no code is
ever run.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ..errors import UserError

# Errors that reading a damaged file raises.
DAMAGES = (
    *(OSError, EOFError, RuntimeError, pickle.UnpicklingError),
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, ImportError),
)
# The classes that .metadata may hold, beside the dtypes.
METADATA_CLASSES = {
    "pathlib": {"PosixPath", "WindowsPath"},
    "torch": {"Size"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        *("ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta"),
        *("TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
    },
    "torch.serialization": {"_get_layout"},
}


def write_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Writes this process's shards of `tensors`. Every process has to call this, with the same names.

    Raises OSError in all processes if one of them cannot write.
    """
    try:
        save({name: t.detach() for name, t in tensors.items()}, storage_writer=FileSystemWriter(folder))
    except CheckpointException as error:
        raise OSError(first_failure(error)) from None


def read_shards(
    folder: Path, prefix: str, like: Callable[[str], Tensor | None] = lambda name: None
) -> dict[str, Tensor]:
    """Reads the tensors whose names begin with a prefix, and removes it. Every process has to call this.

    like: returns for a name the tensor that the result is sharded like; None for a whole tensor. Raises UserError if a
    file is missing or damaged, or `.metadata` holds more than a description of tensors.
    """
    try:
        with (folder / ".metadata").open("rb") as file:
            MetadataUnpickler(file).load()
        reader = FileSystemReader(folder)
        stored = reader.read_metadata().state_dict_metadata
        wanted = {
            name: empty(entry, like(name.removeprefix(prefix)))
            for name, entry in stored.items()
            if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # A single process reads alone.
            load(wanted, storage_reader=reader)
    except CheckpointException as error:
        raise UserError(first_failure(error)) from None
    except DAMAGES as error:
        raise UserError(repr(error)) from None
    return {name.removeprefix(prefix): tensor for name, tensor in wanted.items()}


class MetadataUnpickler(pickle.Unpickler):
    """Refuses everything that does not describe tensors, so that the library may then read the same file."""

    def find_class(self, module: str, name: str):
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and name not in METADATA_CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"refused: it holds {module}.{name}, and could run code")
        return super().find_class(module, name)


def empty(entry: TensorStorageMetadata, like: Tensor | None) -> Tensor:
    """Returns an uninitialised tensor, sharded as `like` is if that has the same shape."""
    if like is None or like.shape != entry.size:
        return torch.empty(entry.size, dtype=entry.properties.dtype)
    return torch.empty_like(like, dtype=entry.properties.dtype)


def first_failure(error: CheckpointException) -> str:
    """Names the first process that failed and its error, in one line."""
    rank, (cause, _) = min(error.failures.items())
    return f"process {rank}: {cause!r}"

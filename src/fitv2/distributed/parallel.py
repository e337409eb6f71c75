"""A network as one or several processes train it: moved to the device, under autocast, replicated (DDP) or sharded.

Sharding is FSDP2, torch's `fully_shard`: each process keeps a shard of the weights, gradients, moments and averages. A
block's parameters are all-gathered before its forward and backward pass and resharded right after. A sharded tensor
is a DTensor: its `shape` is that of the whole, and `to_local()` is this process's shard.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from ..model.network import Network
from ..model.transformer import FiT
from .ranks import Ranks


class ParallelModel:
    """Owns a network during training; call it like the network itself.

    Attributes:
        module: The network, moved to the device and, with sharding "fsdp", sharded in place. Its own forward pass runs
            under autocast if precision is "bf16". With several processes, gradients are averaged only if the backward
            pass belongs to a call of this object.
        ranks: The processes that train it.
        sharded: Whether `module`'s parameters are DTensors.
    """

    def __init__(
        self, module: Network, ranks: Ranks, sharding: Literal["none", "fsdp"] = "none", precision: str = "bf16"
    ) -> None:
        several = ranks.num_processes > 1
        self.module, self.ranks, self.sharded = module, ranks, several and sharding == "fsdp"
        if self.sharded:
            assert isinstance(module, FiT)  # A recipe shards no other network.
            shard(module, ranks.device, ranks.num_processes, precision)
        else:
            module.to(ranks.device)
        if precision == "bf16":
            module.forward = torch.autocast(ranks.device.type, torch.bfloat16)(module.forward)
        # By default, gradients would be held twice: by themselves, and in the buckets in which they are averaged.
        replicated = several and not self.sharded
        self._call = DistributedDataParallel(module, gradient_as_bucket_view=True) if replicated else module

    def __call__(self, *inputs: Any, **options: Any) -> Tensor:
        return self._call(*inputs, **options)

    def accumulating(self) -> AbstractContextManager[None]:
        """Within, backward passes leave their gradients in this process, to be averaged with those of a later one.

        Sharded gradients are averaged in every backward pass: whole ones would take the memory that sharding saves.
        """
        return self._call.no_sync() if isinstance(self._call, DistributedDataParallel) else nullcontext()

    def gather(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gathers sharded tensors on rank 0, one after another, on the CPU; on other ranks the dict is empty.

        Every process has to call this. Tensors that are not sharded are returned unchanged.
        """
        found = {}
        for name, tensor in tensors.items():
            full = whole(tensor)
            if self.ranks.is_main_process:
                found[name] = tensor if full is tensor else full.cpu()
        return found


def shard(model: FiT, device: torch.device, world: int, precision: str) -> None:
    """Shards each parameter of a network by rows over `world` processes, in place; on GPUs it is moved there.

    With precision "bf16" the blocks are gathered in bfloat16, to which autocast would cast them anyway (its own casts
    would fill the memory again). Gradients are summed in float32.
    """
    mesh = init_device_mesh(device.type, (world,))
    in_blocks, elsewhere = MixedPrecisionPolicy(), MixedPrecisionPolicy(cast_forward_inputs=False)
    if precision == "bf16":
        # The residual stream, the times and the rotations stay float32.
        in_blocks = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=in_blocks)
    # By default the other parameters would stay gathered after a forward pass without a backward pass.
    fully_shard(model, mesh=mesh, mp_policy=elsewhere, reshard_after_forward=True)


def whole(tensor: Tensor) -> Tensor:
    """Returns the whole of a tensor, gathered if it is sharded; every process has to call this at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Returns this process's shard of a tensor, or the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def by_shares(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Returns function(rows), computed in shares: one of each process.

    Every process has to call this with the same rows, (n, ...) with n of at least 1, each of which the function treats
    by itself.
    """
    if not dist.is_initialized():
        return function(rows)
    share = -(-len(rows) // dist.get_world_size())
    begin = min(share * dist.get_rank(), len(rows) - 1)  # There may be nothing left for the last ones.
    own = function(rows[begin : begin + share])
    own = F.pad(own, (0, 0) * (own.ndim - 1) + (0, share - len(own)))
    found = own.new_empty(share * dist.get_world_size(), *own.shape[1:])
    dist.all_gather_into_tensor(found, own.contiguous())
    return found[: len(rows)]


def split_like(tensor: Tensor, like: Tensor | None) -> Tensor:
    """Returns this process's shard of a tensor if `like` is sharded and of the same shape; else the tensor itself."""
    if not isinstance(like, DTensor) or like.shape != tensor.shape:
        return tensor
    split = distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return split.clone()  # Else it is a view that keeps the whole.

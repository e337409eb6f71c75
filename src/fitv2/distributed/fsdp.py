"""FSDP2, torch's own `fully_shard`: every process keeps its share of the weights, gradients, moments and averages.

A block is gathered when its turn comes and given back at once, in the forward pass and in the backward pass. Such a
tensor is a DTensor: its `shape` is that of the whole, and what is there of it is `to_local()`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..model.compute import autocast_in
from ..model.transformer import FiT


def shard(model: FiT, device: torch.device, world: int, precision: str) -> None:
    """Splits the network over `world` processes, each of its weights by rows, in place; on GPUs it is moved there.

    precision "bf16": autocast, as without sharding, and the blocks are gathered in bfloat16, to which autocast would
    cast them anyway (kept by it, the casts would fill the memory again). Gradients are added up in float32.
    """
    mesh = init_device_mesh(device.type, (world,))
    in_blocks, elsewhere = MixedPrecisionPolicy(), MixedPrecisionPolicy(cast_forward_inputs=False)
    if precision == "bf16":
        # The residual stream, the times and the rotations stay float32.
        in_blocks = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        model.forward = autocast_in(torch.bfloat16, device)(model.forward)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=in_blocks)
    # By default the rest would stay gathered after a forward pass without a backward pass, as of a sample sheet.
    fully_shard(model, mesh=mesh, mp_policy=elsewhere, reshard_after_forward=True)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered where it is split; every process has to call this at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors, gathered one after another, in the memory of the CPU; empty in a process that does not keep them.

    Those that are not split are returned as they are.
    """
    found = {}
    for name, tensor in tensors.items():
        part = whole(tensor)
        if keep:
            found[name] = part.cpu() if isinstance(tensor, DTensor) else part
    return found


def split_like(tensor: Tensor, like: Tensor | None) -> Tensor:
    """This process's share of a tensor that every process has whole, where `like` is split and of the same shape."""
    if not isinstance(like, DTensor) or like.shape != tensor.shape:
        return tensor
    split = distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return split.clone()  # Else it is a view that keeps the whole.

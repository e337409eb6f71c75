"""FSDP2, torch's own `fully_shard`: each process keeps a shard of the weights, gradients, moments and averages.

A block's parameters are all-gathered before its forward and backward pass and resharded right after. A sharded tensor
is a DTensor: its `shape` is that of the whole, and `to_local()` is this process's shard.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..model.transformer import FiT


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
    """The whole of a tensor, gathered if it is sharded; every process has to call this at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor; a tensor that is not sharded as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors, gathered one after another into the memory of the CPU; an empty dict on a rank that does not keep.

    Tensors that are not sharded are returned as they are.
    """
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if keep:
            found[name] = full.cpu() if isinstance(tensor, DTensor) else full
    return found


def split_like(tensor: Tensor, like: Tensor | None) -> Tensor:
    """This process's shard of a whole tensor, if `like` is sharded and of the same shape; else the tensor itself."""
    if not isinstance(like, DTensor) or like.shape != tensor.shape:
        return tensor
    split = distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return split.clone()  # Else it is a view that keeps the whole.

"""A network as one or several processes train it: moved to the device, under autocast, replicated (DDP) or sharded."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..model.network import Network
from ..model.transformer import FiT
from ..tokens import TokenBatch
from .fsdp import gathered, shard, whole
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
        self._call = DistributedDataParallel(module) if several and not self.sharded else module

    def __call__(self, batch: TokenBatch, t_B: Tensor, y_B: Tensor) -> Tensor:
        return self._call(batch, t_B, y_B)

    def accumulating(self) -> AbstractContextManager[None]:
        """Within, backward passes leave their gradients in this process, to be averaged with those of a later one.

        Sharded gradients are averaged in every backward pass: whole ones would take the memory that sharding saves.
        """
        return self._call.no_sync() if isinstance(self._call, DistributedDataParallel) else nullcontext()

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The network's parameters by name."""
        return dict(self.module.named_parameters())

    def gather(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gathers tensors on rank 0, one after another, into the memory of the CPU; on other ranks the dict is empty.

        Every process has to call this.
        """
        return gathered(tensors, keep=self.ranks.is_main_process)

    def clip_grad_norm(self, most: float) -> Tensor:
        """Scales the gradients down to a norm of at most `most`; returns the norm before, of all shards together."""
        return whole(torch.nn.utils.clip_grad_norm_(self.module.parameters(), most))

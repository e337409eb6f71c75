"""What updates the weights: AdamW, or Muon for the matrices of the blocks and AdamW for everything else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..distributed.parallel import by_shares, split_like, whole
from ..errors import UserError

# The quintic iteration of Keller Jordan's Muon: singular values go to between 0.7 and 1.2, which is near enough to 1.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
# With this factor and the root of the longer side an update has the size of one by AdamW, so that a learning rate
# suits both (Moonlight, arXiv 2502.16982, Eq. 4).
LIKE_ADAMW = 0.2


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix is made orthogonal, so that no direction of a layer dominates (arXiv 2502.16982).

    Unlike `torch.optim.Muon` it works on sharded weights, and skips a step whose gradient is not finite without waiting
    for the device.

    Args:
        dtype: In which matrices are made orthogonal; bfloat16 is faster, and off by a hundredth, which does not matter.

    Attributes:
        found_inf: () float; where it is 1, `step` changes nothing.
    """

    def __init__(
        self,
        weights: Iterable[Tensor],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.found_inf, self.dtype = torch.zeros(()), dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Updates every weight that has a gradient; matrices of one shape together."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    alike[weight.shape].append(weight)
            for weights in alike.values():
                self._step(weights, **group)

    def _step(self, weights: list[Tensor], lr: float, weight_decay: float, momentum: float, **_: Any) -> None:
        skipped = self.found_inf.to(weights[0].device) > 0
        looking_ahead = []
        for weight in weights:
            buffer = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
            moved = momentum * buffer + weight.grad
            looking_ahead.append(whole(weight.grad + momentum * moved))  # Nesterov's momentum.
            buffer.copy_(torch.where(skipped, buffer, moved))
        updates = by_shares(orthogonal, torch.stack(looking_ahead).to(self.dtype))
        size = LIKE_ADAMW * max(weights[0].shape) ** 0.5
        for weight, update in zip(weights, updates, strict=True):
            moved = weight * (1 - lr * weight_decay) - lr * size * split_like(update, weight)
            weight.copy_(torch.where(skipped, weight, moved))


def orthogonal(matrices: Tensor) -> Tensor:
    """Returns the nearest matrices with orthogonal rows or columns, (n, rows, columns), by Newton and Schulz."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    # On a CPU, transposed operands and separate additions would take longer than the products.
    x = matrices.mT.contiguous() if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x.mT if tall else x


class Optimizer:
    """The optimisers of a training, each with the names of its parameters in its own order.

    Matrices alone have weight decay: it does nothing good to biases, scales and embeddings.

    Args:
        parameters: What is trained, by name.
        learning_rate: Until the first step, which names its own.
        beta2: AdamW's second-moment decay.
        muon: Whether Muon updates the matrices of blocks.
        dtype: In which Muon makes them orthogonal.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        learning_rate: float,
        beta2: float,
        weight_decay: float = 0.0,
        muon: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        by_muon = [name for name in parameters if muon and is_block_matrix(name, parameters)]
        others = [name for name in parameters if name not in set(by_muon)]
        decayed = [name for name in others if weight_decay and is_matrix(name, parameters)]
        plain = [name for name in others if name not in set(decayed)]
        groups = [
            {"params": [parameters[name] for name in names], "weight_decay": decay}
            for names, decay in ((decayed, weight_decay), (plain, 0.0))
            if names
        ]
        self.parts: list[tuple[torch.optim.Optimizer, list[str]]] = []
        if groups:
            adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, beta2), fused=True)
            self.parts.append((adamw, decayed + plain))
        if by_muon:
            matrices = [parameters[name] for name in by_muon]
            self.parts.append((Muon(matrices, learning_rate, weight_decay, dtype=dtype), by_muon))

    @property
    def learning_rate(self) -> float:
        """That of the last step."""
        return self.parts[0][0].param_groups[0]["lr"]

    def step(self, learning_rate: float, finite: Tensor) -> None:
        """Updates the weights and clears the gradients.

        finite: () bool; where it is false, nothing changes. That is decided on the device, as torch's gradient scaler
        does it, so that the host need not wait; but the fused AdamW of other devices ignores `found_inf`.
        """
        skipped = finite.device.type not in ("cpu", "cuda") and not finite
        for optimizer, _ in self.parts:
            if skipped:
                optimizer.zero_grad()
                continue
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.found_inf = (~finite).float()  # pyright: ignore[reportAttributeAccessIssue]
            optimizer.step()
            optimizer.zero_grad()

    def tensors(self) -> dict[str, Tensor]:
        """The state of each parameter as tensors named `<entry>.<parameter>`."""
        found = {}
        for optimizer, names in self.parts:
            state = optimizer.state_dict()["state"]
            found |= {f"{key}.{names[i]}": torch.as_tensor(value) for i, s in state.items() for key, value in s.items()}
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores what `tensors` returned. Raises UserError for a tensor of another parameter."""
        states: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, value in tensors.items():
            entry, _, name = key.partition(".")
            states[name][entry] = value
        known = {name for _, names in self.parts for name in names}
        if unknown := states.keys() - known:
            raise UserError(f"the optimiser's checkpoint is of another network: it has {min(unknown)}")
        for optimizer, names in self.parts:
            state = {i: states[name] for i, name in enumerate(names) if name in states}
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def is_matrix(name: str, parameters: Mapping[str, Tensor]) -> bool:
    """Whether a parameter is the weight of a linear layer: no bias, scale, table of embeddings or convolution."""
    return parameters[name].ndim == 2 and name.endswith(".weight") and "embedding_table" not in name


def is_block_matrix(name: str, parameters: Mapping[str, Tensor]) -> bool:
    """Whether a parameter is a matrix inside a block; DiT keeps the embedders of time and class in its first one."""
    return "blocks." in name and ".emb." not in name and is_matrix(name, parameters)

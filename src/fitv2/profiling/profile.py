"""What a forward pass and a training step of a model cost at a size: by formula, and measured with random weights."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ..build import build_objective
from ..errors import UserError
from ..model.compute import lay_out_by_input
from ..model.config import NetworkConfig
from ..model.network import Network, build_network
from ..model.transformer import FiT
from ..randomness import Purpose, seed_of, torch_generator
from ..sampling.spec import check_divisible
from ..settings import TrainingSettings
from ..tokens import TokenBatch
from . import formula as cost
from .measure import Work, in_turn, matrix_product, most_bytes

# The rows of Table I of FiTv2, in its order.
TABLE_1 = ("SiT-B/2", "FiT-B/2", "FiTv2-B/2", "SiT-XL/2", "FiT-XL/2", "FiTv2-XL/2", "FiTv2-3B/2")
# Of the backward pass, the gradients of inputs and of weights each take the products of the forward pass once more.
PASSES_OF_A_STEP = 3


@dataclass(frozen=True)
class Subject:
    """A model by its name. factor: picture pixels per latent pixel; size: of a picture, where none is asked for."""

    name: str
    config: NetworkConfig
    factor: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Case:
    """`batch` pictures of one size, (height, width) in pixels, through one model.

    precision: "bf16" (training under autocast, inference with bfloat16 weights) or "fp32". Raises ValueError for a size
    that does not fit the model, and for a batch below 1.
    """

    subject: Subject
    size: tuple[int, int]
    batch: int = 1
    precision: cost.Precision = "bf16"

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UserError(f"a batch of {self.batch} pictures cannot be: it needs at least one")
        try:
            check_divisible(self.size, self.pixels)
        except UserError as error:
            raise UserError(f"{self.subject.name}: {error}") from None
        if self.subject.config.fixed_grid and self.size[0] != self.size[1]:
            raise UserError(
                f"{self.subject.name} takes square pictures only, and {self.size[0]}x{self.size[1]} is none; leave the "
                "size or the model away"
            )

    @property
    def pixels(self) -> int:
        """Side of a token in pixels of the picture."""
        return self.subject.factor * self.subject.config.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens of a picture."""
        return self.size[0] // self.pixels, self.size[1] // self.pixels

    @property
    def config(self) -> NetworkConfig:
        """The model's own; of DiT and SiT, which are of one size, that for this size."""
        config = self.subject.config
        return replace(config, side=self.grid[0]) if config.fixed_grid else config

    @property
    def tokens(self) -> int:
        """Of one picture."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class Cost:
    """By formula, of a whole batch. linear_macs: multiply-accumulates of a forward's linear layers. forward_flops:
    operations of all its matrix products, two for each; a training step takes three times as many.

    Memory in bytes, estimated. forward_bytes: beyond the weights, in inference. activation_bytes: kept for a backward
    pass. training_bytes: of a whole training step, with weights and their average, gradients and moments.
    """

    parameters: int
    linear_macs: int
    forward_flops: int
    forward_bytes: int
    activation_bytes: int
    training_bytes: int


@dataclass(frozen=True)
class Pass:
    """Medians of one kind of run. bytes: the most held at a time beyond weights and moments. share: of the device's
    peak, by the operations that the formulas count.
    """

    seconds: float
    tokens_per_second: float
    bytes: int
    share: float


@dataclass(frozen=True)
class Measured:
    """forward: in inference. step: loss, backward pass and fused AdamW; its bytes have gradients and autocast's copies;
    None where it was left out.

    peak_flops: operations a second of large matrix products, measured in turn with both.
    """

    forward: Pass
    step: Pass | None
    peak_flops: float


@dataclass(frozen=True)
class Profile:
    """A case and its figures; measured None: by formula only."""

    case: Case
    cost: Cost
    measured: Measured | None = None

    def report(self) -> dict[str, Any]:
        """As JSON takes it."""
        case = self.case
        about = {"model": case.subject.name, "size": list(case.size), "batch": case.batch, "tokens": case.tokens}
        return about | asdict(self.cost) | {"measured": self.measured and asdict(self.measured)}


def cost_of(case: Case) -> Cost:
    """The formulas; no memory is taken, whatever the model."""
    config, tokens = case.config, case.batch * case.tokens
    lengths = [case.tokens] * case.batch
    return Cost(
        parameters=cost.parameters(config),
        linear_macs=cost.linear_macs(config, lengths),
        forward_flops=cost.forward_flops(config, lengths),
        forward_bytes=cost.forward_bytes(config, tokens, case.precision),
        activation_bytes=cost.activation_bytes(config, tokens, precision=case.precision),
        training_bytes=cost.training_bytes(config, tokens, precision=case.precision),
    )


def measure(
    case: Case,
    forward_flops: int,
    device: torch.device,
    repeats: int = 5,
    done: Callable[[int], None] | None = None,
    with_step: bool = True,
    compiled: bool = False,
) -> Measured:
    """Runs a network of random weights and large matrix products in turn, `repeats` times after a warm-up.

    forward_flops: of the case, by formula. done: gets 1 after each of 3 * (repeats + 1) runs, 2 without the step.
    compiled: the blocks of a FiT; DiT and SiT stay as they are.
    """
    works = workload(case, device, with_step, compiled)
    product, product_flops = matrix_product(dtype_of(case), device)
    seconds = in_turn(works | {"product": product}, repeats, done)
    peaks = [product_flops / taken for taken in seconds["product"]]
    tokens, flops = case.batch * case.tokens, {"forward": forward_flops, "step": PASSES_OF_A_STEP * forward_flops}
    passes = {
        name: Pass(
            seconds=median(seconds[name]),
            tokens_per_second=tokens / median(seconds[name]),
            bytes=most_bytes(work, device),
            share=median(flops[name] / taken / peak for taken, peak in zip(seconds[name], peaks, strict=True)),
        )
        for name, work in works.items()
    }
    return Measured(forward=passes["forward"], step=passes.get("step"), peak_flops=median(peaks))


def workload(case: Case, device: torch.device, with_step: bool, compiled: bool) -> dict[str, Work]:
    """The forward of a case, and the training step, on noise."""
    config, autocast = case.config, case.precision == "bf16"
    torch.manual_seed(seed_of(Purpose.MEASURING))
    with device:
        model = build_network(config)
        x = torch.randn(case.batch * case.tokens, config.token_channels)
        times, labels = torch.rand(case.batch), torch.zeros(case.batch, dtype=torch.int64)
    batch = TokenBatch(x, [case.grid] * case.batch)
    for_inference = (deepcopy(model) if with_step else model).to(dtype_of(case)).eval()
    if autocast:
        lay_out_by_input(for_inference)
    if compiled:
        torch.compiler.reset()  # Graphs of earlier cases count towards the most that there may be.
        for network in (model, for_inference):
            if isinstance(network, FiT):
                network.compile_blocks()

    @torch.inference_mode()
    def forward() -> None:
        for_inference(batch, times, labels)

    if not with_step:
        return {"forward": forward}
    return {"forward": forward, "step": training_step(model, batch, labels, autocast)}


def training_step(model: Network, batch: TokenBatch, labels_B: Tensor, autocast: bool) -> Work:
    """A step that trains a network with AdamW on the same images each time, under bfloat16 autocast if asked."""
    objective = build_objective(TrainingSettings(), model.config)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    generator = torch_generator(Purpose.MEASURING)

    def network(*inputs: Any) -> Tensor:
        with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=autocast):
            return model(*inputs)

    def step() -> None:
        objective(network, batch, labels_B, model.null_label, generator).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def dtype_of(case: Case) -> torch.dtype:
    """Of the products."""
    return torch.bfloat16 if case.precision == "bf16" else torch.float32

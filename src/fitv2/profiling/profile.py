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
from ..model.config import FiTConfig, NetworkConfig
from ..model.network import Network, build_network
from ..model.numerics import lay_out_by_input
from ..model.transformer import FiT
from ..randomness import Purpose, seed_of, torch_generator
from ..sampling.sizes import check_divisible
from ..settings.recipe import TrainingSettings
from ..system.device import DTYPES
from ..tokens import TokenBatch, pack_context
from . import formula as cost
from .measure import Work, in_turn, matrix_product, most_bytes

# The rows of Table I of FiTv2, in its order.
TABLE_1 = ("SiT-B/2", "FiT-B/2", "FiTv2-B/2", "SiT-XL/2", "FiT-XL/2", "FiTv2-XL/2", "FiTv2-3B/2")
# In the backward pass, the gradients of inputs and of weights each take the products of the forward pass once more.
PASSES_OF_A_STEP = 3


@dataclass(frozen=True)
class Subject:
    """A model; factor: image pixels per latent pixel; size: the default (height, width) of an image in pixels."""

    name: str
    config: NetworkConfig
    factor: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Case:
    """A batch of images of one size, (height, width) in pixels, through one model.

    precision: "bf16" (training under autocast, inference with bfloat16 weights) or "fp32". Raises UserError if the size
    does not fit the model.
    """

    subject: Subject
    size: tuple[int, int]
    batch: int = 1
    precision: cost.Precision = "bf16"

    def __post_init__(self) -> None:
        try:
            check_divisible(self.size, self.pixels)
        except UserError as error:
            raise UserError(f"{self.subject.name}: {error}") from None
        if self.subject.config.fixed_grid and self.size[0] != self.size[1]:
            raise UserError(
                f"{self.subject.name} takes square images only, and {self.size[0]}x{self.size[1]} is none; omit the "
                "size or the model"
            )

    @property
    def pixels(self) -> int:
        """The side of a token in image pixels."""
        return self.subject.factor * self.subject.config.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        """The rows and columns of tokens of an image."""
        return self.size[0] // self.pixels, self.size[1] // self.pixels

    @property
    def tokens(self) -> int:
        """The number of tokens of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def config(self) -> NetworkConfig:
        """The model's own configuration; for DiT and SiT, which take one size, that for the size of this case."""
        config = self.subject.config
        return replace(config, side=self.grid[0]) if config.fixed_grid else config

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the matrix products."""
        return DTYPES[self.precision]


@dataclass(frozen=True)
class Cost:
    """The cost of a whole batch by formula; memory in bytes, estimated.

    Attributes:
        linear_macs: The multiply-accumulates of the linear layers in a forward pass.
        forward_flops: The FLOPs of all matrix products in a forward pass; a training step takes three times as many.
        forward_bytes: The memory of a forward pass in inference beyond the weights.
        activation_bytes: The memory of the activations that a backward pass needs.
        training_bytes: The memory of a training step with weights, averages, gradients and moments.
    """

    parameters: int
    linear_macs: int
    forward_flops: int
    forward_bytes: int
    activation_bytes: int
    training_bytes: int


@dataclass(frozen=True)
class Pass:
    """Medians of one kind of run.

    Attributes:
        bytes: The peak memory beyond weights and moments; of a step with gradients and autocast's copies.
        share: The fraction of the device's peak, by the FLOPs of the formulas.
    """

    seconds: float
    tokens_per_second: float
    bytes: int
    share: float


@dataclass(frozen=True)
class Measured:
    """The forward pass in inference, and the training step (None if left out); peak_flops: FLOPs a second."""

    forward: Pass
    step: Pass | None
    peak_flops: float


@dataclass(frozen=True)
class Profile:
    """A case and its figures; measured is None if only the formulas were asked for."""

    case: Case
    cost: Cost
    measured: Measured | None = None

    def report(self) -> dict[str, Any]:
        """Returns the figures for JSON."""
        case = self.case
        about = {"model": case.subject.name, "size": list(case.size), "batch": case.batch, "tokens": case.tokens}
        return about | asdict(self.cost) | {"measured": self.measured and asdict(self.measured)}


def cost_of(case: Case) -> Cost:
    """Returns the cost by formula, without building the network in memory."""
    config, precision, lengths = case.config, case.precision, [case.tokens] * case.batch
    return Cost(
        parameters=cost.parameters(config),
        linear_macs=cost.linear_macs(config, lengths),
        forward_flops=cost.forward_flops(config, lengths),
        forward_bytes=cost.forward_bytes(config, sum(lengths), precision),
        activation_bytes=cost.activation_bytes(config, sum(lengths), precision=precision),
        training_bytes=cost.training_bytes(config, sum(lengths), precision=precision),
    )


def measure(
    case: Case,
    device: torch.device,
    repeats: int = 5,
    done: Callable[[int], None] | None = None,
    with_step: bool = True,
    compiled: bool = False,
) -> Measured:
    """Runs a network of random weights and large matrix products in turn.

    Args:
        case: The batch and the network.
        device: The device.
        repeats: The number of runs after a warm-up.
        done: Gets 1 after each run: of the forward pass, of the step and of the product.
        with_step: Whether to run the training step.
        compiled: Whether to compile the blocks of a FiT; DiT and SiT are never compiled.
    """
    works = workload(case, device, with_step, compiled)
    product, product_flops = matrix_product(case.dtype, device)
    seconds = in_turn(works | {"product": product}, repeats, done)
    peaks = [product_flops / taken for taken in seconds["product"]]
    tokens, forward_flops = case.batch * case.tokens, cost.forward_flops(case.config, [case.tokens] * case.batch)
    flops = {"forward": forward_flops, "step": PASSES_OF_A_STEP * forward_flops}
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
    """Returns the forward pass and the training step of a case, on noise."""
    config, autocast = case.config, case.precision == "bf16"
    torch.manual_seed(seed_of(Purpose.MEASURING))
    with device:
        model = build_network(config)
        x = torch.randn(case.batch * case.tokens, config.token_channels)
        times, labels = torch.rand(case.batch), torch.zeros(case.batch, dtype=torch.int64)
    batch = TokenBatch(x, [case.grid] * case.batch)
    for_inference = (deepcopy(model) if with_step else model).to(case.dtype).eval()
    if autocast:
        lay_out_by_input(for_inference)
    if compiled:
        torch.compiler.reset()  # Graphs of earlier cases count towards the most that there may be.
        for network in (model, for_inference):
            if isinstance(network, FiT):
                network.compile_blocks()

    context = captions_of(config, case.batch, device)

    @torch.inference_mode()
    def forward() -> None:
        for_inference(batch, times, labels, context=context)

    if not with_step:
        return {"forward": forward}
    return {"forward": forward, "step": training_step(model, batch, labels, autocast)}


def captions_of(config: NetworkConfig, number: int, device: torch.device) -> TokenBatch | None:
    """Returns `number` captions of the usual length, made of noise; None for a model without text."""
    if not (isinstance(config, FiTConfig) and config.takes_text):
        return None
    return pack_context(torch.randn(number, cost.CAPTION, config.context_channels, device=device).unbind())


def training_step(model: Network, batch: TokenBatch, labels_B: Tensor, autocast: bool) -> Work:
    """A step that trains a network with AdamW on the same images each time, under bfloat16 autocast if asked."""
    objective = build_objective(TrainingSettings(), model.config)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    generator = torch_generator(Purpose.MEASURING)
    context = captions_of(model.config, len(batch) + 1, batch.x.device)  # The last one is "no text".

    def network(*inputs: Any, **options: Any) -> Tensor:
        with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=autocast):
            return model(*inputs, **options)

    def step() -> None:
        objective(network, batch, labels_B, model.config.null_label, generator, context=context).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step

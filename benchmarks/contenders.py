"""The contenders: the same weights on the same images in several layouts, and the work that is timed.

A layout holds a network and inputs for it. `velocity` runs the network and returns the layout's own shape, `tokens`
brings that to (T, C) in layouts for mixed images, and `loss` is the flow-matching loss: per image the mean over its own
tokens, then the mean over images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fitv2 import FiT, FiTConfig, TokenBatch
from fitv2.flow.objective import flow_loss_at
from fitv2.flow.path import interpolate
from fitv2.model.config import SiTConfig
from fitv2.model.dit import build_dit
from fitv2.model.numerics import lay_out_by_input
from fitv2.profiling.formula import forward_flops
from fitv2.profiling.measure import Work
from fitv2.profiling.profile import PASSES_OF_A_STEP
from fitv2.randomness import Purpose, seed_of
from padded import PaddedFiT, padded, padded_inputs, unpadded

# Relative errors that rounding explains: of float32 in another order, and of bfloat16.
EXACT, ROUNDED = 1e-4, 0.05
SQUARE_SIDE = 16


@dataclass(frozen=True)
class Example:
    """Images to train on: tokens (T, C), noise (T, C), times (B,) in [0, 1] and labels (B,), on one device."""

    data: TokenBatch
    noise: Tensor
    t: Tensor
    y: Tensor

    @classmethod
    def of(cls, data: TokenBatch, y: Tensor, device: torch.device) -> Example:
        noise, t = torch.randn(data.x.shape), torch.rand(len(data))
        return cls(data.to(device), noise.to(device), t.to(device), y.to(device))

    def alone(self) -> list[Example]:
        """Every image as an example of its own."""
        noise = self.noise.split(self.data.lengths)
        return [Example(self.data.select([i]), noise[i], self.t[[i]], self.y[[i]]) for i in range(len(self.data))]


def random_example(config: FiTConfig, sizes: Sequence[tuple[int, int]], device: torch.device) -> Example:
    """Random tokens of images of these (rows, columns) of patches."""
    tokens = torch.randn(sum(h * w for h, w in sizes), config.token_channels)
    return Example.of(TokenBatch(tokens, sizes), torch.arange(len(sizes)) % config.num_classes, device)


def random_model(config: FiTConfig, device: torch.device) -> FiT:
    """The same weights at every call, none of them zero: a new model predicts zero for every input."""
    torch.manual_seed(seed_of(Purpose.MEASURING))
    model = FiT(config)
    for weight in model.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.02)
    return model.to(device)


class Layout(Protocol):
    @property
    def network(self) -> nn.Module: ...

    def velocity(self) -> Tensor: ...

    def loss(self) -> Tensor: ...


class Packed:
    """fitv2 itself."""

    def __init__(self, model: FiT, example: Example) -> None:
        self.network, self.example = model, example

    def velocity(self) -> Tensor:
        return self.network(self.example.data, self.example.t, self.example.y)

    def tokens(self) -> Tensor:
        return self.velocity()

    def loss(self) -> Tensor:
        example = self.example
        return flow_loss_at(self.network, example.data, example.noise, example.t, example.y).loss


class Padded:
    """The same weights over (B, L, D) and a mask; padding and rotation tables are made before the clock starts."""

    def __init__(self, model: FiT, example: Example) -> None:
        self.network, self.example = PaddedFiT(model), example
        head_dim = model.config.width // model.config.heads
        self.x, self.table, self.mask = padded_inputs(example.data, head_dim)
        self.noise = padded(example.noise, example.data)

    def velocity(self) -> Tensor:
        return self.network(self.x, self.example.t, self.example.y, self.table, self.mask)

    def tokens(self) -> Tensor:
        return unpadded(self.velocity(), self.example.data)

    def loss(self) -> Tensor:
        x_t = interpolate(self.x, self.noise, self.example.t[:, None, None])
        predicted = self.network(x_t, self.example.t, self.example.y, self.table, self.mask)
        error = (predicted.float() - (self.x - self.noise)).square().mean(-1) * self.mask
        return (error.sum(1) / self.mask.sum(1)).mean()


class Squares:
    """diffusers' DiT of the same width over `images` squares of 16x16 tokens, which has its own FLOPs."""

    def __init__(self, config: FiTConfig, layers: int, images: int, device: torch.device) -> None:
        sizes = {name: getattr(config, name) for name in ("width", "heads", "patch_size", "in_channels", "num_classes")}
        self.config = SiTConfig(**sizes, depth=layers, side=SQUARE_SIDE)
        side = SQUARE_SIDE * config.patch_size
        self.network = build_dit(self.config).to(device)
        self.x, self.target = torch.randn(2, images, config.in_channels, side, side, device=device)
        self.t = torch.arange(images, device=device)
        self.y = self.t % config.num_classes

    def velocity(self) -> Tensor:
        return self.network(self.x.to(self.network.dtype), self.t, self.y).sample

    def loss(self) -> Tensor:
        return F.mse_loss(self.velocity().float(), self.target)

    def contender(self, name: str, work: Work, forwards: int = 1) -> Contender:
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            numbers = torch.zeros(len(self.x)).long()
            build_dit(self.config)(torch.empty(self.x.shape), numbers, numbers)
        tokens = len(self.x) * SQUARE_SIDE**2
        return Contender(name, work, len(self.x), tokens, forwards * counter.get_total_flops())


class Forward:
    """A forward pass of each layout, without gradients. autocast: for weights that are not in bfloat16 themselves."""

    def __init__(self, layouts: Sequence[Layout], device: torch.device, autocast: bool) -> None:
        self.layouts, self.device, self.autocast = layouts, device, autocast

    @torch.no_grad()
    def __call__(self) -> None:
        for layout in self.layouts:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                layout.velocity()


class TrainingSteps:
    """On each layout in turn: forward, loss, backward, clipped gradients and AdamW, under autocast."""

    def __init__(self, layouts: Sequence[Layout], device: torch.device) -> None:
        self.layouts, self.device = layouts, device
        self.weights = list(layouts[0].network.parameters())
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-4, weight_decay=0.0, fused=True)

    def __call__(self) -> None:
        for layout in self.layouts:
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = layout.loss()
            loss.backward()
            nn.utils.clip_grad_norm_(self.weights, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()


@dataclass(frozen=True)
class Contender:
    """The work that is timed, and the images, tokens and useful FLOPs of one call, without padding.

    short: work of the same memory in less time, because records of memory grow with the time; None: the work itself.
    """

    name: str
    work: Work
    images: int
    tokens: int
    flops: int
    precision: str = "bf16"
    short: Work | None = None


def of_lengths(name: str, work: Work, config: FiTConfig, lengths: Sequence[int], forwards: int = 1) -> Contender:
    """A contender whose work is worth that many forward passes over images of these token counts."""
    return Contender(name, work, len(lengths), sum(lengths), forwards * forward_flops(config, lengths))


class SameWeights:
    """Makes contenders of one network over one list of examples.

    Raises ValueError where one does not give the numbers of every image alone: in float32 closely, and within rounding
    as it is then timed.
    """

    def __init__(self, config: FiTConfig, examples: Sequence[Example], device: torch.device) -> None:
        self.config, self.examples, self.device = config, examples, device
        self.lengths = [length for example in examples for length in example.data.lengths]
        model = random_model(config, device)
        with torch.no_grad():
            self.expected = [torch.cat([Packed(model, one).tokens() for one in e.alone()]) for e in examples]

    def forward(
        self,
        name: str,
        layout: type[Packed | Padded],
        half: bool = False,
        autocast: bool = True,
        compiled: bool = False,
    ) -> Contender:
        """half: weights in bfloat16, as they are loaded to sample. autocast: around the network; a FiT in bfloat16 sees
        to its precision itself.
        """
        model, layouts = self.build(name, layout)
        if half:
            model.to(torch.bfloat16)
        if half and layout is Packed:
            lay_out_by_input(model)
        if compiled:
            model.compile_blocks()
        with torch.no_grad():
            self.check_rounded(name, layouts, autocast)
        return of_lengths(name, Forward(layouts, self.device, autocast), self.config, self.lengths)

    def training(
        self, name: str, layout: type[Packed | Padded], compiled: bool = False, token_budget: int = 0
    ) -> Contender:
        """A step on each example. token_budget: as of `FiT.compile_blocks`."""
        model, layouts = self.build(name, layout)
        if compiled:
            model.compile_blocks(token_budget)
        self.check_rounded(name, layouts, autocast=True)
        work = TrainingSteps(layouts, self.device)
        return of_lengths(name, work, self.config, self.lengths, PASSES_OF_A_STEP)

    def build(self, name: str, layout: type[Packed | Padded]) -> tuple[FiT, Sequence[Packed | Padded]]:
        model = random_model(self.config, self.device)
        layouts = [layout(model, example) for example in self.examples]
        with torch.no_grad():
            self.check(name, layouts, EXACT)
        return model, layouts

    def check_rounded(self, name: str, layouts: Sequence[Packed | Padded], autocast: bool) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
            self.check(name, layouts, ROUNDED)

    def check(self, name: str, layouts: Sequence[Packed | Padded], tolerance: float) -> None:
        for layout, expected in zip(layouts, self.expected, strict=True):
            error = float((layout.tokens().detach().float() - expected).norm() / expected.norm())
            if not error <= tolerance:
                raise ValueError(f"{name} is {error:.2g} away from every image alone, and {tolerance:g} is allowed")

"""The parts of a comparison: which contenders meet over which images. Defaults are what is published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from contenders import (
    Contender,
    Example,
    Forward,
    Packed,
    Padded,
    SameWeights,
    Squares,
    TrainingSteps,
    of_lengths,
    random_example,
    random_model,
)
from fitv2 import FiT, FiTConfig, preset
from fitv2.build import build_dataset, build_model_config
from fitv2.checkpoints.model_folder import load_pretrained
from fitv2.data.dataset import Dataset
from fitv2.data.loader import DataCursor, PackLoader
from fitv2.model.numerics import lay_out_by_input
from fitv2.profiling.formula import forward_flops
from fitv2.profiling.profile import PASSES_OF_A_STEP
from fitv2.randomness import Purpose, seed_of
from fitv2.sampling.generate import generate, guided_model, sample_batch
from fitv2.sampling.spec import SampleSpec, Sampling
from fitv2.settings.read import load_recipe
from fitv2.tokens import TokenBatch
from results import Unit

Sizes = Sequence[tuple[int, int]]
B2 = preset("FiTv2-B/2")
THREE_BLOCKS = preset("FiTv2-B/2", depth=3)
# A FiTv2 block has LoRA modulation and so fewer weights than one of DiT: 15 of them make a model of the size of 12.
DIT_LAYERS = 12
# 1 799 tokens, 2 048 with padding.
MIXED = [(16, 16), (13, 19), (19, 13), (11, 23), (16, 16), (14, 18), (8, 12), (12, 16)]
ALL_DIFFERENT = [(h, w) for h in range(6, 14) for w in range(6, 14)]
# Of a turn: more than the compiler would make graphs for, if it made one for each.
PACKS = 12
SAMPLERS = Sampling(), Sampling(interval=(0.3, 0.9)), Sampling(solver="euler", steps=250)


@dataclass(frozen=True)
class Part:
    """base: the contender that the others are compared with, by its `unit`s per second. about: one line for people."""

    title: str
    about: str
    contenders: list[Contender]
    unit: Unit
    base: str


Build = Callable[[torch.device], Part]


def forward(device: torch.device, config: FiTConfig = B2, hw: Sizes = MIXED, dit_layers: int = DIT_LAYERS) -> Part:
    """FiTv2-B/2: a forward of 8 images of mixed sizes."""
    make = SameWeights(config, [random_example(config, hw, device)], device)
    squares = Squares(config, dit_layers, len(hw), device)
    squares.network.bfloat16().eval()
    contenders = [
        make.forward("fitv2, bf16 weights", Packed, half=True, autocast=False),
        make.forward("fitv2 compiled, bf16 weights", Packed, half=True, autocast=False, compiled=True),
        make.forward("fitv2, autocast", Packed),
        make.forward("padded, autocast", Padded),
        make.forward("padded, bf16 weights", Padded, half=True),
        squares.contender("diffusers' DiT, squares", Forward([squares], device, autocast=False)),
    ]
    about = "Ratio: real tokens a second, to the padded layout as its authors run it."
    return Part(f"Forward, {len(hw)} images of mixed sizes", about, contenders, "tokens", "padded, autocast")


def training(device: torch.device, config: FiTConfig = B2, hw: Sizes = MIXED, dit_layers: int = DIT_LAYERS) -> Part:
    """FiTv2-B/2: a training step on the same images."""
    make = SameWeights(config, [random_example(config, hw, device)], device)
    squares = Squares(config, dit_layers, len(hw), device)
    contenders = [
        make.training("fitv2", Packed),
        make.training("fitv2 compiled", Packed, compiled=True),
        make.training("padded", Padded),
        squares.contender("diffusers' DiT, squares", TrainingSteps([squares], device), PASSES_OF_A_STEP),
    ]
    about = "Forward, loss, backward, clipping and AdamW. Ratio: real tokens a second, to the padded layout."
    return Part(f"Training step, {len(hw)} images of mixed sizes", about, contenders, "tokens", "padded")


def fashion(device: torch.device, *overrides: str) -> Part:
    """The recipe `fashion`: training steps on some of its packs."""
    recipe = load_recipe("fashion", ["data.split=bundled", *overrides])
    dataset = build_dataset(recipe.data, recipe.model.patch_size)
    budget = recipe.training.max_tokens_per_batch
    examples = packs(dataset, budget, PACKS, device)
    make = SameWeights(build_model_config(recipe, dataset), examples, device)
    contenders = [
        make.training("fitv2", Packed),
        make.training("fitv2 compiled", Packed, compiled=True, token_budget=budget),
        make.training("padded", Padded),
    ]
    about = f"A turn is one step on each of {len(examples)} packs. Ratio: images a second, to the padded layout."
    title = f"Training on the recipe fashion, packs of {budget} tokens"
    return Part(title, about, contenders, "images", "padded")


def packs(dataset: Dataset, budget: int, number: int, device: torch.device) -> list[Example]:
    """The first packs of a training."""
    torch.manual_seed(seed_of(Purpose.MEASURING))
    stream = PackLoader(dataset, budget).steps(DataCursor())
    examples = [Example.of(*next(stream).packs[0][:2], device) for _ in range(number)]
    stream.close()
    return examples


def sizes(device: torch.device, config: FiTConfig = THREE_BLOCKS, hw: Sizes = ALL_DIFFERENT) -> Part:
    """Images of 64 sizes: one packed forward against size by size, three blocks as wide as FiTv2-B/2."""
    example = random_example(config, hw, device)
    together, one_by_one = (SameWeights(config, examples, device) for examples in ([example], example.alone()))
    contenders = [
        together.forward("one packed forward", Packed, half=True, autocast=False),
        one_by_one.forward("size by size", Packed, half=True, autocast=False),
    ]
    about = "Ratio: tokens a second, to a forward for every size."
    return Part(f"{len(hw)} images of {len(hw)} sizes", about, contenders, "tokens", "size by size")


def growth(device: torch.device, config: FiTConfig = B2, sides: Sequence[int] = (16, 32, 64, 128)) -> Part:
    """FiTv2-B/2: a forward of one image of 256 to 16 384 tokens."""
    contenders = half_forwards(config, {f"{side**2} tokens": [(side, side)] for side in sides}, device)
    about = "Ratio: operations a second, to the shortest. 1 is a time that grows as the formula: T and T squared."
    return Part("One image of more and more tokens", about, contenders, "flops", contenders[0].name)


def batch(device: torch.device, config: FiTConfig = B2, side: int = 16, most: int = 32) -> Part:
    """FiTv2-B/2: a forward of 1 to 32 images of 256 tokens in one pack."""
    counts = [2**power for power in range(most.bit_length())]
    contenders = half_forwards(config, {f"{n} in a pack": [(side, side)] * n for n in counts}, device)
    about = "Ratio: tokens a second, to one image alone."
    return Part(f"More and more images of {side**2} tokens", about, contenders, "tokens", contenders[0].name)


def half_forwards(config: FiTConfig, batches: dict[str, Sizes], device: torch.device) -> list[Contender]:
    """Forwards of one network in bfloat16 over a pack of each of the batches."""
    model = random_model(config, device).to(torch.bfloat16)
    lay_out_by_input(model)
    contenders = []
    for name, hw in batches.items():
        work = Forward([Packed(model, random_example(config, hw, device))], device, autocast=False)
        contenders.append(of_lengths(name, work, config, [h * w for h, w in hw]))
    return contenders


def sampling(device: torch.device, per_class: int = 4, samplers: Sequence[Sampling] = SAMPLERS) -> Part:
    """The built-in model: 40 images as `fitv2 sample` makes them, against 250 steps of Euler."""
    pretrained = load_pretrained("builtin:fashion")
    model = pretrained.model.to(device)
    specs = [
        SampleSpec(label, (height, width), seed=number)
        for label, shapes in enumerate(pretrained.shapes)
        for number, (height, width, _) in enumerate(shapes[:per_class])
    ]
    contenders = [samples(model, specs, settings) for settings in samplers]
    about = f"Guided, float32, {len(specs)} images a turn. Ratio: images a second, to Euler."
    return Part("Sampling with the built-in model", about, contenders, "images", contenders[-1].name)


def samples(model: FiT, specs: Sequence[SampleSpec], settings: Sampling) -> Contender:
    tokens = [spec.tokens(model.config.patch_size) for spec in specs]
    low, high = settings.interval
    return Contender(
        f"{settings.solver}, {settings.steps} steps" + (f", guided {low:g} to {high:g}" if high - low < 1 else ""),
        partial(generate, model, specs, settings),
        len(specs),
        sum(tokens),
        evaluations(model.config, settings) * forward_flops(model.config, tokens),
        precision="float32",
        short=partial(generate, model, specs, replace(settings, steps=2)),
    )


def evaluations(config: FiTConfig, settings: Sampling) -> int:
    """Of the network for one image, counted: a guided call takes two, one outside the guidance interval one."""
    counted = 0

    def denoiser(batch: TokenBatch, t: Tensor, y: Tensor, *context: TokenBatch | None, **options: Any) -> Tensor:
        nonlocal counted
        counted += len(batch.hw)
        return torch.zeros_like(batch.x)

    spec = SampleSpec(0, (config.patch_size, config.patch_size), seed=0)
    sample_batch(guided_model(denoiser, config, [spec], settings, torch.device("cpu")), [spec.seed])
    return counted


PARTS: dict[str, Build] = {part.__name__: part for part in (forward, training, fashion, sizes, growth, batch, sampling)}

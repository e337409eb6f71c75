"""Counts the paper's claim that FiTv2-XL/2 takes 28.6 % of the training cost of SiT-XL/2 in several ways.

    python tools/paper_cost.py

All by formula: nothing is measured. What depends on the sizes of ImageNet's images takes them from
`fitv2.data.stand_in`, where they are drawn after what is known of them. Encoding takes the same for both if each image
is encoded once and kept, and then hardly counts; encoded again in each step, it favours whoever takes fewer steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fitv2.data.packing import packing_efficiency, plan_packs
from fitv2.data.stand_in import IMAGES, ImageNetLike
from fitv2.model.presets import PRESETS
from fitv2.profiling.formula import forward_flops, linear_macs, parameters
from fitv2.settings.read import load_recipe

FIT, SIT = PRESETS["FiTv2-XL/2"], PRESETS["SiT-XL/2"]
# Thousands of steps at a batch of 256 (FiTv2, Sec. IV), and Table I's "GFLOPs".
STEPS, BATCH, TABLE_1 = (2000, 7000), 256, (147, 114)
TOKENS = 256
# Enough for a mean.
DRAWN = 20_000
# A training step: the forward pass, and a backward pass of twice its operations.
PASSES = 3
# Operations of the encoder of Stable Diffusion's VAE, which both take, for 256x256 pixels, as torch counts them; each
# image and its mirror image is encoded.
VAE_FLOPS, FLIPS = 272_722_165_760, 2


@dataclass(frozen=True)
class Line:
    """One way to count: a formula with its numbers, and the share of SiT's cost that it gives; NaN: not known."""

    formula: str
    share: float


def account() -> dict[str, Line]:
    """Shares of SiT's cost: the training, counted ever more fully, then all else that costs."""
    lengths = ImageNetLike(TOKENS, DRAWN).epoch(0, 0).hw.prod(1)
    linear, full = ([of(config, [TOKENS]) / 1e9 for config in (FIT, SIT)] for of in (linear_macs, forward_flops))
    packed, mean = forward_flops(FIT, lengths.tolist()) / len(lengths) / 1e9, lengths.mean()
    return {
        "steps": Line(f"by formula: {STEPS[0]}k / {STEPS[1]}k steps at batch {BATCH}", STEPS[0] / STEPS[1]),
        "operations of Table I": of_steps("GMAC in Table I", *TABLE_1),
        "linear layers": of_steps(f"GMAC of linear layers at {TOKENS} tokens", *linear),
        "with attention": of_steps(f"GFLOP with attention at {TOKENS} tokens, also where they are padding", *full),
        "packed": of_steps(f"GFLOP, FiTv2 on the {mean:.0f} real tokens of a mean image", packed, full[1]),
        **vae_lines(packed, full[1]),
        "parameters": of_both("million", *(parameters(c) / 1e6 for c in (FIT, SIT))),
        **waste_lines(lengths),
        "evaluations a sample": of_both(
            f"GFLOP each at {TOKENS} tokens, two with guidance; how many dopri5 takes is not told of either", *full
        ),
        "seconds": Line("not by formula, and not known: the paper has no measured time of either training", math.nan),
    }


def of_steps(of: str, own: float, other: float) -> Line:
    """The steps times the ratio of what an image costs in each."""
    steps = f"{STEPS[0]}k / {STEPS[1]}k steps"
    return Line(f"by formula: {steps} x {own:.1f} / {other:.1f} {of}", STEPS[0] / STEPS[1] * own / other)


def of_both(of: str, own: float, other: float) -> Line:
    return Line(f"by formula: {own:.1f} / {other:.1f} {of}", own / other)


def vae_lines(own: float, other: float) -> dict[str, Line]:
    """With encoding, once or in each step, which by itself is alike; own, other: GFLOP of a forward over an image."""
    once = VAE_FLOPS * IMAGES * FLIPS / 1e18
    trained = [steps * 1e3 * BATCH * PASSES * gflop / 1e9 for steps, gflop in zip(STEPS, (own, other), strict=True)]
    formula = f"by formula: {trained[0]:.1f} / {trained[1]:.1f} EFLOP and {once:.1f} of the VAE in both"
    each = f"GFLOP a step and image, {VAE_FLOPS / 1e9:.0f} of the VAE in both"
    return {
        "packed, encoded once": Line(formula, (trained[0] + once) / (trained[1] + once)),
        "packed, encoded in each step": of_steps(
            each, PASSES * own + VAE_FLOPS / 1e9, PASSES * other + VAE_FLOPS / 1e9
        ),
    }


def waste_lines(lengths: np.ndarray) -> dict[str, Line]:
    """Which share of what is computed is no image; SiT has no such. lengths: (N,) tokens of images."""
    budget, mean = load_recipe("imagenet-xl").training.max_tokens_per_batch, lengths.mean()
    packed = packing_efficiency(lengths, plan_packs(lengths, budget, 0, 0), budget)
    padded = f"by formula: 1 - {mean:.1f} / {TOKENS} tokens of FiTv2, padded as its authors train; none of SiT"
    empty = f"by formula: what is empty in packs of {budget} tokens, as here; none of SiT"
    return {"waste, padded": Line(padded, 1 - mean / TOKENS), "waste, packed": Line(empty, 1 - packed)}


if __name__ == "__main__":
    for name, line in account().items():
        share = "not known" if math.isnan(line.share) else f"{100 * line.share:.1f} %"
        print(f"{name:30} {share:>9}  {line.formula}")

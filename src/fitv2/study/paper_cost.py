"""The paper's claim that FiTv2-XL/2 takes 28.6 % of the training cost of SiT-XL/2, counted in several ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from ..data.imagenet import ImageNetLike
from ..model.cost import forward_flops, linear_macs
from ..model.presets import PRESETS

FIT, SIT = PRESETS["FiTv2-XL/2"], PRESETS["SiT-XL/2"]
# Thousands of steps at a batch of 256 (FiTv2, Sec. IV), and Table I's "GFLOPs".
STEPS, TABLE_1 = (2000, 7000), (147, 114)
TOKENS = 256
# Enough for a mean; drawn after what is known of ImageNet's sizes.
PICTURES = 20_000


@dataclass(frozen=True)
class Line:
    """One way to count: a formula with its numbers, and the share of SiT's cost that it gives."""

    formula: str
    share: float


@cache
def account() -> dict[str, Line]:
    """The share by steps alone, and times what a picture costs in each step, counted ever more fully."""
    steps = STEPS[0] / STEPS[1]
    lengths = ImageNetLike(TOKENS, PICTURES).epoch(0, 0).hw.prod(1).tolist()
    mean = sum(lengths) / len(lengths)
    linear = [2 * linear_macs(config, [TOKENS]) / 1e9 for config in (FIT, SIT)]
    full = [forward_flops(config, [TOKENS]) / 1e9 for config in (FIT, SIT)]
    packed = forward_flops(FIT, lengths) / len(lengths) / 1e9
    by_steps = f"{STEPS[0]}k / {STEPS[1]}k steps"
    return {
        "steps": Line(f"{by_steps} at batch 256", steps),
        "operations of Table I": line(by_steps, TABLE_1, "GMAC in Table I"),
        "linear layers": line(by_steps, linear, f"GFLOP of linear layers at {TOKENS} tokens"),
        "with attention": line(by_steps, full, f"GFLOP with attention at {TOKENS} tokens, also where they are padding"),
        "packed": line(by_steps, (packed, full[1]), f"GFLOP, FiTv2 on the {mean:.0f} real tokens of a mean picture"),
    }


def line(by_steps: str, costs: Sequence[float], of: str) -> Line:
    """The steps times the ratio of what a picture costs; costs: of FiTv2 and SiT."""
    own, other = costs
    return Line(f"{by_steps} x {own:.1f} / {other:.1f} {of}", STEPS[0] / STEPS[1] * own / other)

"""2-D rotary position embedding, and its forms for images larger than those of training.

Half of each head rotates with the row, half with the column (FiT, Sec. 3.2). For larger images frequencies are lowered,
per axis or alike, and attention may be sharpened (FiT, Sec. 3.4; FiTv2, Sec. III-E). Frequencies are chosen per image:
a batch may mix sizes that need different ones. `fitv2.model.config.RopeScheme` names the choice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..tokens import upload
from .config import AttentionFactor, RopeScheme


def rotation_table(
    positions_T2: Tensor, image_index_T: Tensor, hw_B2: Tensor, head_dim: int, scheme: RopeScheme
) -> tuple[Tensor, Tensor]:
    """Returns cosines and sines, each (T, 1, head_dim / 2) float32, of (row, column) of every token.

    Always float32: in bfloat16 the angle itself is wrong by up to 0.06 rad at position 25. The root of the attention
    factor is in the table, because queries and keys are both rotated, so it costs nothing.
    """
    device = positions_T2.device
    sizes_B2 = hw_B2 if scheme.target is None else torch.tensor([scheme.target]).expand(len(hw_B2), 2)
    frequencies_B2F = upload(image_frequencies(sizes_B2, head_dim // 2, scheme), device)
    angles = (positions_T2[:, :, None].float() * frequencies_B2F[image_index_T]).flatten(1)[:, None]
    if scheme.attention == "none":
        return angles.cos(), angles.sin()
    root_B = attention_factor(sizes_B2.double(), scheme.attention, scheme.train_side).sqrt().float()
    root_T11 = upload(root_B, device)[image_index_T][:, None, None]
    return angles.cos() * root_T11, angles.sin() * root_T11


def rotate(x_TNH: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates each adjacent pair (2i, 2i + 1) of every head by its angle; computed in float32, dtype kept."""
    cos, sin = table
    even, odd = x_TNH.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x_TNH.dtype)


def image_frequencies(sizes_B2: Tensor, axis_dim: int, scheme: RopeScheme) -> Tensor:
    """Returns (B, 2, axis_dim / 2) float32 angles per patch for rows and columns of images of these (rows, columns)."""
    if not scheme.per_axis:
        sizes_B2 = sizes_B2.amax(1, keepdim=True).expand(-1, 2)
    ratio_B21 = (sizes_B2 / scheme.train_side).clamp(min=1).float()[..., None]

    def powers(base: Tensor) -> Tensor:
        return base ** (-torch.arange(0, axis_dim, 2, dtype=torch.float32) / axis_dim)

    plain = powers(torch.full_like(ratio_B21, scheme.theta))
    if scheme.method == "none":
        return plain
    interpolated = plain / ratio_B21  # Squeezes all positions into the range of training.
    if scheme.method == "interpolation":
        return interpolated
    if scheme.method == "yarn":  # Keeps fast frequencies and interpolates slow ones, with a ramp between.
        return torch.lerp(interpolated, plain, kept_fraction(32, 1, axis_dim, scheme))
    # A larger base interpolates the lowest frequency and keeps the highest.
    ntk_aware = powers(scheme.theta * ratio_B21 ** (axis_dim / max(axis_dim - 2, 1)))
    if scheme.method == "ntk-aware":
        return ntk_aware
    # NTK by parts: keeps fast frequencies, interpolates slow ones, NTK-aware between; the constants are the authors'.
    mixed = torch.lerp(interpolated, ntk_aware, kept_fraction(1.25, 0.75, axis_dim, scheme))
    return torch.lerp(mixed, plain, kept_fraction(16, 2, axis_dim, scheme))


def kept_fraction(fast: float, slow: float, axis_dim: int, scheme: RopeScheme) -> Tensor:
    """Returns (axis_dim / 2,) from 1 at `fast` turns or more over the training size to 0 at `slow` turns or fewer.

    Where rounding makes the range empty or turns it round, the result is a step or all ones, as in the authors' code.
    """

    def index(turns: float) -> float:
        return axis_dim * math.log(scheme.train_side / (turns * 2 * math.pi)) / (2 * math.log(scheme.theta))

    low, high = max(math.floor(index(fast)), 0), min(math.ceil(index(slow)), axis_dim - 1)
    width = high - low or 0.001
    return 1 - ((torch.arange(axis_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)


def attention_factor(sizes_B2: Tensor, kind: AttentionFactor, train_side: int) -> Tensor:
    """Returns (B,) factors on the attention logits for float64 sizes in patches.

    The authors' "pro1" and "pro2" are not 1 at the training size; "paper" is Eq. 15 of FiTv2.
    """
    side_B, tokens_B = sizes_B2.amax(1), sizes_B2.prod(1)
    if kind == "none":
        return torch.ones_like(side_B)
    if kind == "yarn":
        return (1 + 0.1 * (side_B / train_side).clamp(min=1).log()) ** 2
    tested_B, trained = {
        "pro1": (2 * side_B, train_side),
        "pro2": (2 * tokens_B, train_side**2),
        "paper": (tokens_B, train_side**2),
    }[kind]
    return (tested_B.log() / math.log(trained)).clamp(min=1)

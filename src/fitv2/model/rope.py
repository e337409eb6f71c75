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
from .config import RopeScheme


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
    root = ATTENTION_SCALES[scheme.attention](sizes_B2.double(), scheme.train_side).sqrt().float()
    root_T11 = upload(root, device)[image_index_T][:, None, None]
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
    return METHODS[scheme.method](ratio_B21, axis_dim, scheme)


# The methods: (ratio >= 1 of the size to that of training, numbers per axis, scheme) to angles per patch.


def unscaled(ratio: Tensor, axis_dim: int, scheme: RopeScheme) -> Tensor:
    """Returns the frequencies of training, whatever the size."""
    return base_power(torch.full_like(ratio, scheme.theta), axis_dim)


def interpolated(ratio: Tensor, axis_dim: int, scheme: RopeScheme) -> Tensor:
    """Squeezes all positions into the range of training (position interpolation)."""
    return unscaled(ratio, axis_dim, scheme) / ratio


def ntk_aware(ratio: Tensor, axis_dim: int, scheme: RopeScheme) -> Tensor:
    """Takes a larger base: the lowest frequency is interpolated, the highest stays."""
    return base_power(scheme.theta * ratio ** (axis_dim / max(axis_dim - 2, 1)), axis_dim)


def ntk_by_parts(ratio: Tensor, axis_dim: int, scheme: RopeScheme) -> Tensor:
    """Keeps fast frequencies, interpolates slow ones, and is NTK-aware between them, with the authors' constants."""
    slow = kept_fraction(1.25, 0.75, axis_dim, scheme)
    mixed = torch.lerp(interpolated(ratio, axis_dim, scheme), ntk_aware(ratio, axis_dim, scheme), slow)
    return torch.lerp(mixed, unscaled(ratio, axis_dim, scheme), kept_fraction(16, 2, axis_dim, scheme))


def yarn(ratio: Tensor, axis_dim: int, scheme: RopeScheme) -> Tensor:
    """Keeps fast frequencies and interpolates slow ones, with a ramp between (YaRN)."""
    squeezed, kept = interpolated(ratio, axis_dim, scheme), unscaled(ratio, axis_dim, scheme)
    return torch.lerp(squeezed, kept, kept_fraction(32, 1, axis_dim, scheme))


def base_power(base: Tensor, axis_dim: int) -> Tensor:
    """Returns base ** (-2 i / axis_dim) for i below axis_dim / 2."""
    return base ** (-torch.arange(0, axis_dim, 2, dtype=torch.float32) / axis_dim)


def kept_fraction(fast: float, slow: float, axis_dim: int, scheme: RopeScheme) -> Tensor:
    """Returns (axis_dim / 2,) from 1 at `fast` turns or more over the training size to 0 at `slow` turns or fewer.

    Where rounding makes the range empty or turns it round, the result is a step or all ones, as in the authors' code.
    """

    def index(turns: float) -> float:
        return axis_dim * math.log(scheme.train_side / (turns * 2 * math.pi)) / (2 * math.log(scheme.theta))

    low, high = max(math.floor(index(fast)), 0), min(math.ceil(index(slow)), axis_dim - 1)
    width = high - low or 0.001
    return 1 - ((torch.arange(axis_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)


# The attention factors: ((B, 2) float64 sizes in patches, training size) to (B,) factors on the logits.


def no_scale(sizes_B2: Tensor, train_side: int) -> Tensor:
    return torch.ones_like(sizes_B2[:, 0])


def yarn_scale(sizes_B2: Tensor, train_side: int) -> Tensor:
    """Returns (1 + 0.1 ln ratio)^2 for the longer side (YaRN)."""
    return (1 + 0.1 * (sizes_B2.amax(1) / train_side).clamp(min=1).log()) ** 2


def side_scale(sizes_B2: Tensor, train_side: int) -> Tensor:
    """Returns the authors' "pro1": log(2 side) / log(train side) for the longer side; not 1 at the training size."""
    return log_ratio(2 * sizes_B2.amax(1), train_side)


def doubled_token_scale(sizes_B2: Tensor, train_side: int) -> Tensor:
    """Returns the authors' "pro2": log(2 tokens) / log(train tokens); not 1 at the training size."""
    return log_ratio(2 * sizes_B2.prod(1), train_side**2)


def token_scale(sizes_B2: Tensor, train_side: int) -> Tensor:
    """Returns the paper's factor: log(tokens) / log(train tokens), at least 1 (FiTv2, Eq. 15)."""
    return log_ratio(sizes_B2.prod(1), train_side**2)


def log_ratio(tested_B: Tensor, trained: int) -> Tensor:
    return (tested_B.log() / math.log(trained)).clamp(min=1)


METHODS = {
    "none": unscaled,
    "interpolation": interpolated,
    "ntk-aware": ntk_aware,
    "ntk-by-parts": ntk_by_parts,
    "yarn": yarn,
}
ATTENTION_SCALES = {
    "none": no_scale,
    "yarn": yarn_scale,
    "pro1": side_scale,
    "pro2": doubled_token_scale,
    "paper": token_scale,
}

"""What a network predicts, as a velocity: the output that objectives and samplers of a flow work with.

A network of prediction "data" computes the clean image, from which the velocity follows (JiT, arXiv 2511.13720). Clean
tokens of many values, such as patches of 16x16 colour pixels, lie near a low-dimensional manifold; noise fills the
whole space, and a narrow network cannot represent it.
"""

from __future__ import annotations

from torch import Tensor

from ..tokens import TokenBatch
from .config import NetworkConfig

# The velocity is a difference divided by 1 - t, but by no less than this, in training and in sampling (as in JiT), so
# that errors near the data are not magnified without bound. In sampling it leaves noise of 1 to 2 % in the image.
LEAST_NOISE = 0.05


def least_noise(config: NetworkConfig) -> float:
    """Returns what the objective needs to know of how a network's velocity arises: 0, or `LEAST_NOISE`."""
    return LEAST_NOISE if config.prediction == "data" else 0.0


def as_velocity(output_TC: Tensor, batch: TokenBatch, t_B: Tensor, config: NetworkConfig) -> Tensor:
    """Returns the output of a network as a velocity, unless it predicts noise: (x - z) / max(1 - t, 0.05).

    Args:
        output_TC: (T, C) or, with further heads, (T, n C).
        batch: The images z at their times, x is (T, C).
        t_B: (B,) float in [0, 1], where 1 is data.
        config: The configuration of the network.
    """
    if config.prediction != "data":
        return output_TC
    remaining_T1 = batch.expand_to_tokens((1 - t_B.float()).clamp(min=LEAST_NOISE))[:, None]
    z_TC = batch.x.repeat(1, output_TC.shape[1] // config.token_channels)
    return (output_TC.float() - z_TC) / remaining_T1

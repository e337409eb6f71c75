"""What a network costs: parameters, floating-point operations and memory, by formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from ..model.config import NetworkConfig
from ..model.network import bare_model

Precision = Literal["bf16", "no"]

# Bytes kept for the backward pass per token, block and unit of width, by precision, blocks not compiled. No attention
# scores are among them: they are the same for all lengths. `tests/test_cost.py` measures them.
SAVED_BYTES = {"bf16": 54, "no": 87}
# Bytes alive at once per token and unit of width in inference: q, k, v, scores, the MLP and the residual stream. FiTv2
# holds 50 and 78, for images of 512 tokens 57 and 102; FiT, with its wider MLP, 57 and 93.
LIVE_BYTES = {"bf16": 55, "no": 90}
LIVE_BYTES_OF_GRIDS = {"bf16": 33, "no": 49}  # In diffusers' network of DiT and SiT no scores are ever there.
# Linear layers that act once per image, by what is in their names; the last two are of DiT and SiT.
PER_IMAGE = ("t_embedder", "adaLN", "norm1", "proj_out_1")


def parameters(config: NetworkConfig) -> int:
    """Number of weights."""
    return sum(p.numel() for p in bare_model(config).parameters())


def linear_macs(config: NetworkConfig, lengths: Sequence[int]) -> int:
    """Multiply-accumulates of linear layers in one forward of images of these token counts.

    Table I of FiTv2 calls this "GFLOPs", and counts the norms with it. Diffusers' network of DiT embeds time and class
    once more in each of its blocks, which does not count: the authors' code does not.
    """
    macs = 0
    for name, module in bare_model(config).named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):  # A convolution that cuts patches is a linear layer on each.
            times = len(lengths) if any(part in name for part in PER_IMAGE) else sum(lengths)
            macs += times * module.weight.numel()
    return macs


def forward_flops(config: NetworkConfig, lengths: Sequence[int]) -> int:
    """Operations of matrix products in one forward of images of these token counts; a multiply-add counts two."""
    return 2 * linear_macs(config, lengths) + attention_flops(config, lengths)


def attention_flops(config: NetworkConfig, lengths: Sequence[int]) -> int:
    """Of these, the products of queries, keys and values."""
    return 4 * config.depth * config.width * sum(n * n for n in lengths)


def training_bytes(
    config: NetworkConfig,
    tokens: int,
    activation_checkpointing: bool = False,
    precision: Precision = "bf16",
    trained: float = 1.0,
    shards: int = 1,
) -> int:
    """Estimated memory of a training step over `tokens` tokens on one device.

    Weights and their average in float32, gradients and two AdamW moments of the share that is trained, autocast's
    copies of the weights, and what the backward pass keeps.
    shards: over how many devices all but the copies are spread; of the copies each then holds two blocks' at a time.
    """
    weights, copies = parameters(config), 2 if precision == "bf16" else 0
    if shards > 1:
        copies = (copies or 4) * min(2 / config.depth, 1)
    kept = weights * 4 * (2 + 3 * trained) / shards + weights * copies
    return int(kept) + activation_bytes(config, tokens, activation_checkpointing, precision)


def activation_bytes(
    config: NetworkConfig, tokens: int, activation_checkpointing: bool = False, precision: Precision = "bf16"
) -> int:
    """Of these, what the backward pass keeps: of all blocks, or of one and each block's input in float32."""
    block = SAVED_BYTES[precision]
    per_token = block + 4 * config.depth if activation_checkpointing else block * config.depth
    return tokens * config.width * per_token


def forward_bytes(config: NetworkConfig, tokens: int, precision: Precision = "no") -> int:
    """Estimated memory, beyond the weights, of a forward over `tokens` tokens in inference.

    precision: of weights and products; the residual stream is float32 in any.
    """
    live = LIVE_BYTES_OF_GRIDS if config.fixed_grid else LIVE_BYTES
    return tokens * config.width * live[precision]

"""What a network costs: parameters, floating-point operations and memory, by formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from .config import FiTConfig
from .transformer import FiT

# Bytes kept for the backward pass per token, block and unit of width, by precision, blocks not compiled. Autograd
# saves 84 under bfloat16 autocast and 122 without, plus the attention scores: 16 and 32 at most, for images of 512
# tokens. Compiled blocks save 35 less. `tests/test_cost.py` measures it.
SAVED_BYTES = {"bf16": 92, "no": 138}
# Floats alive at once per token and unit of width in inference: modulation, q, k, v, the MLP and the residual stream.
LIVE_FLOATS = 21


def parameters(config: FiTConfig) -> int:
    """Number of weights."""
    with torch.device("meta"):
        return sum(p.numel() for p in FiT(config).parameters())


def forward_flops(config: FiTConfig, lengths: Sequence[int]) -> int:
    """Operations of matrix products in one forward of images of these token counts; a multiply-add counts two."""
    per_token = per_image = 0
    with torch.device("meta"):
        model = FiT(config)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            if name.startswith("t_embedder") or "adaLN" in name:
                per_image += module.weight.numel()
            else:
                per_token += module.weight.numel()
    return 2 * (per_token * sum(lengths) + per_image * len(lengths)) + attention_flops(config, lengths)


def attention_flops(config: FiTConfig, lengths: Sequence[int]) -> int:
    """Of these, the products of queries, keys and values."""
    return 4 * config.depth * config.width * sum(n * n for n in lengths)


def training_bytes(
    config: FiTConfig,
    tokens: int,
    activation_checkpointing: bool = False,
    precision: Literal["bf16", "no"] = "bf16",
    trained: float = 1.0,
    shards: int = 1,
) -> int:
    """Estimated memory of a training step over `tokens` tokens on one device.

    Weights and their average in float32, gradients and two AdamW moments of the share that is trained, autocast's
    copies of the weights, and what the backward pass keeps: of all blocks, or of one and each block's input in float32.
    shards: over how many devices all but the copies are spread; of the copies each then holds two blocks' at a time.
    """
    weights, copies = parameters(config), 2 if precision == "bf16" else 0
    if shards > 1:
        copies = (copies or 4) * min(2 / config.depth, 1)
    kept = weights * 4 * (2 + 3 * trained) / shards + weights * copies
    block = SAVED_BYTES[precision]
    per_token = block + 4 * config.depth if activation_checkpointing else block * config.depth
    return int(kept) + tokens * config.width * per_token


def sampling_bytes(config: FiTConfig, tokens: int) -> int:
    """Estimated memory, beyond the weights, of a guided float32 forward over `tokens` tokens (each with and without its
    class).
    """
    return 2 * tokens * config.width * LIVE_FLOATS * 4

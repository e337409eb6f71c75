"""What a network costs by formula: parameters, FLOPs and memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from torch import nn

from ..model.config import FiTConfig, NetworkConfig
from ..model.network import bare_model
from ..precision import Precision

# Bytes kept for the backward pass per token, block and unit of width, by precision, blocks not compiled. No attention
# scores are among them: they are the same for all lengths. `tests/test_cost.py` measures them.
SAVED_BYTES = {"bf16": 54, "fp32": 87}
# Bytes alive at once per token and unit of width in inference: q, k, v, scores, the MLP and the residual stream. FiTv2
# holds 50 and 78, for images of 512 tokens 57 and 102; FiT, with its wider MLP, 57 and 93.
LIVE_BYTES = {"bf16": 55, "fp32": 90}
LIVE_BYTES_OF_GRIDS = {"bf16": 33, "fp32": 49}  # In diffusers' network of DiT and SiT no scores are ever there.
# Tokens of a caption, on the average, that costs are estimated with.
CAPTION = 12
# Name fragments of linear layers applied once per image, not per token (the last two occur in DiT and SiT).
PER_IMAGE = ("t_embedder", "adaLN", "norm1", "proj_out_1")


class Weights(NamedTuple):
    """Numbers of weights of a network: all of them, and those of linear layers by what each is applied to.

    Attributes:
        image: Once for an image.
        token: To each token of an image.
        block: To each token in the blocks, also of a caption that goes through them.
        caption: To each token of a caption.
    """

    all: int
    image: int = 0
    token: int = 0
    block: int = 0
    caption: int = 0


@cache
def weights(config: NetworkConfig) -> Weights:
    """Counts the weights of a network, which is not built in memory."""
    network, counts = bare_model(config), Counter[str]()
    for name, module in network.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):  # A convolution that cuts patches is a linear layer on each.
            continue
        if name.startswith("context_embedder") or name.endswith("cross.kv"):
            kind = "caption"
        elif any(part in name for part in PER_IMAGE):
            kind = "image"
        else:
            kind = "block" if name.startswith("blocks") else "token"
        counts[kind] += module.weight.numel()
    return Weights(sum(p.numel() for p in network.parameters()), **counts)


def parameters(config: NetworkConfig) -> int:
    """Returns the number of parameters."""
    return weights(config).all


def linear_macs(config: NetworkConfig, lengths: Sequence[int]) -> int:
    """Returns the multiply-accumulates of linear layers in a forward pass of images of these token counts.

    Table I of FiTv2 calls this "GFLOPs", and counts the norms with it. Diffusers' network of DiT embeds time and class
    once more in each of its blocks, which does not count: the authors' code does not.
    """
    counts, images, tokens = weights(config), len(lengths), sum(lengths)
    macs = images * counts.image + tokens * counts.token + (tokens + context_tokens(config) * images) * counts.block
    return macs + CAPTION * images * counts.caption


def context_tokens(config: NetworkConfig) -> int:
    """Returns the tokens of a caption, on the average, that go through all blocks beside those of its image."""
    return CAPTION if isinstance(config, FiTConfig) and config.context == "joint" else 0


def forward_flops(config: NetworkConfig, lengths: Sequence[int]) -> int:
    """Returns the FLOPs of all matrix products in a forward pass; a multiply-accumulate counts two."""
    return 2 * linear_macs(config, lengths) + attention_flops(config, lengths)


def attention_flops(config: NetworkConfig, lengths: Sequence[int]) -> int:
    """Returns the FLOPs of the products of queries, keys and values in a forward pass."""
    joined = context_tokens(config)
    crossed = CAPTION * sum(lengths) if config.takes_text and not joined else 0
    return 4 * config.depth * config.width * (sum((n + joined) ** 2 for n in lengths) + crossed)


def training_bytes(
    config: NetworkConfig,
    tokens: int,
    activation_checkpointing: bool = False,
    precision: Precision = "bf16",
    trained: float = 1.0,
    shards: int = 1,
) -> int:
    """Estimates the memory of a training step on one device, in bytes.

    That is weights and their average in float32, gradients and two AdamW moments of what is trained, autocast's copies
    of the weights, and the activations that the backward pass needs.

    trained is the fraction of the parameters that is trained. shards is the number of devices over which everything
    but autocast's copies is sharded; each device then holds the copies of two blocks at a time.
    """
    weights, copies = parameters(config), 2 if precision == "bf16" else 0
    if shards > 1:
        copies = (copies or 4) * min(2 / config.depth, 1)
    kept = weights * 4 * (2 + 3 * trained) / shards + weights * copies
    return int(kept) + activation_bytes(config, tokens, activation_checkpointing, precision)


def activation_bytes(
    config: NetworkConfig, tokens: int, activation_checkpointing: bool = False, precision: Precision = "bf16"
) -> int:
    """Estimates the activations kept for the backward pass: of all blocks, or of one and the inputs of all."""
    block = SAVED_BYTES[precision]
    per_token = block + 4 * config.depth if activation_checkpointing else block * config.depth
    return tokens * config.width * per_token


def forward_bytes(config: NetworkConfig, tokens: int, precision: Precision = "fp32") -> int:
    """Estimates the memory of a forward pass in inference beyond the weights, in bytes.

    precision is that of weights and products; the residual stream is always float32.
    """
    live = LIVE_BYTES_OF_GRIDS if config.fixed_grid else LIVE_BYTES
    return tokens * config.width * live[precision]

"""The layout that peers have: every image padded to the longest, (B, L, D), and a mask. The opponent in `compare.py`.

It runs the weights of a `fitv2.FiT` as the authors' code does on a CPU, operation by operation: masked
`scaled_dot_product_attention`, modulation per image broadcast over its tokens, eager.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fitv2 import FiT, TokenBatch
from fitv2.model.attention import SelfAttention
from fitv2.model.block import FiTBlock
from fitv2.model.config import DEFAULT_ROPE
from fitv2.model.layers import SwiGLU
from fitv2.model.rope import rotation_table


class PaddedFiT(nn.Module):
    """(x (B, L, C), t (B,), y (B,), tables, mask (B, L)) to (B, L, C); `padded_inputs` makes them of a packed batch."""

    def __init__(self, model: FiT) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, y: Tensor, table: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        model = self.model
        x = model.x_embedder(x)
        c = model.t_embedder(t) + model.y_embedder(y)
        shared = model.global_adaLN_modulation(c)
        for block in model.blocks:
            x = block_forward(block, x, c, shared, table, mask)
        shift, scale = model.final_layer.adaLN_modulation(c).chunk(2, dim=1)
        return model.final_layer.linear(modulated(x, shift, scale)) * mask[..., None]


def block_forward(block: FiTBlock, x: Tensor, c: Tensor, shared: Tensor, table: tuple, mask: Tensor) -> Tensor:
    parts = (block.adaLN_modulation(c) + shared).chunk(6, dim=1)
    x = x + parts[2].unsqueeze(1) * attention(block.attn, modulated(x, *parts[:2]), table, mask)
    return x + parts[5].unsqueeze(1) * swiglu(block.mlp, modulated(x, *parts[3:5]))


def swiglu(mlp: SwiGLU, x: Tensor) -> Tensor:
    return mlp.fc2(F.silu(mlp.fc1_g(x)) * mlp.fc1_x(x))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def attention(attn: SelfAttention, x: Tensor, table: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
    batch, length, width = x.shape
    q, k, v = attn.qkv(x).reshape(batch, length, 3, attn.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = turned(attn.q_norm(q), table), turned(attn.k_norm(k), table)
    same = mask[:, None, None, :] == mask[:, None, :, None]
    x = F.scaled_dot_product_attention(q, k, v, attn_mask=same)
    return attn.proj(x.transpose(1, 2).reshape(batch, length, width) * mask[..., None])


def turned(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * table[0] + torch.stack((-odd, even), dim=-1).flatten(-2) * table[1]


def padded_inputs(batch: TokenBatch, head_dim: int) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """x (B, L, C) with zeros after each image, cosines and sines (B, 1, L, H), mask (B, L) float."""
    table = rotation_table(batch.positions, batch.image_index, batch.hw, head_dim, DEFAULT_ROPE)
    cos, sin = (padded(side.squeeze(1).repeat_interleave(2, dim=-1), batch).unsqueeze(1) for side in table)
    return padded(batch.x, batch), (cos, sin), padded(batch.x.new_ones(len(batch.x)), batch)


def padded(x: Tensor, batch: TokenBatch) -> Tensor:
    """(T, ...) to (B, L, ...), L the longest image's tokens."""
    return nn.utils.rnn.pad_sequence(list(x.split(batch.lengths)), batch_first=True)


def unpadded(x: Tensor, batch: TokenBatch) -> Tensor:
    """The inverse of `padded`."""
    return torch.cat([image[:length] for image, length in zip(x, batch.lengths, strict=True)])

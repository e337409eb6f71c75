"""Initial values as the authors draw them (DiT, SiT, FiT, FiTv2), one function per network.

They share one scheme: Xavier uniform weights and zero biases in linear layers, normal values of standard deviation 0.02
in the label and time embeddings, and zeros in the modulation and output layers. At first every block is thus the
identity, and the network predicts zero. On the meta device there are no values: `fitv2.model.network` skips this.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

EMBEDDING_STD = 0.02


def initialise_fit(model: Any) -> None:
    """Initialises a `FiT` from torch's global generator. Context layers follow the scheme, with a closed gate."""
    xavier(model)
    blocks, times = model.blocks, model.t_embedder.mlp
    normal(model.y_embedder.embedding_table.weight, times[0].weight, times[2].weight)
    # Only the second layer of a low-rank pair is zero: if both were, neither would ever learn.
    heads = [model.final_layer] if model.internal_layer is None else [model.final_layer, model.internal_layer]
    modulations = [part.adaLN_modulation[-1] for part in (*blocks, *heads)]
    if model.global_adaLN_modulation is not None:
        modulations.append(model.global_adaLN_modulation[-1])
    zero((*modulations, *(head.linear for head in heads)))
    for block in blocks:
        if block.cross is not None:
            nn.init.zeros_(block.cross.gate)


def initialise_dit(dit: Any) -> None:
    """Initialises diffusers' network of DiT or SiT from torch's global generator."""
    xavier(dit)
    for block in dit.transformer_blocks:
        for layer in (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v):
            nn.init.xavier_uniform_(layer.weight, gain=0.5**0.5)  # As if they were one layer from D to 3 D.
    nn.init.xavier_uniform_(dit.pos_embed.proj.weight.flatten(1))  # A convolution, but linear on each patch.
    nn.init.zeros_(dit.pos_embed.proj.bias)
    embedder = dit.transformer_blocks[0].norm1.emb
    times = embedder.timestep_embedder
    normal(embedder.class_embedder.embedding_table.weight, times.linear_1.weight, times.linear_2.weight)
    zero((*dit_modulations(dit), dit.proj_out_2))


def dit_modulations(dit: Any) -> list[nn.Linear]:
    """Returns the layers that produce shifts, scales and gates."""
    return [*(block.norm1.linear for block in dit.transformer_blocks), dit.proj_out_1]


def xavier(model: nn.Module) -> None:
    """Initialises every linear layer with Xavier's uniform weights and no bias."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


def normal(*weights: Tensor) -> None:
    """Initialises embeddings and their layers with a normal distribution."""
    for weight in weights:
        nn.init.normal_(weight, std=EMBEDDING_STD)


def zero(layers: Iterable[nn.Linear]) -> None:
    """Sets weights and biases to zero."""
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)

"""FiTv2: a diffusion transformer over packed tokens of pictures of any size (arXiv 2410.13925, Sec. III).

Shape suffixes as in `fitv2.tokens`: T tokens, B images, C token channels, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..tokens import TokenBatch, spread
from .attention import SelfAttention, packed_attention
from .context import CONTEXTS, ContextEmbedder, CrossAttention, join
from .layers import FinalLayer, LabelEmbedder, PatchEmbedder, SwiGLU, TimestepEmbedder
from .modulation import FullModulation, LowRankModulation, modulated_norm
from .rope import PLAIN, RopeScheme, rotation_table


@dataclass(frozen=True, kw_only=True)
class FiTConfig:
    """Everything that fixes the network. Raises ValueError where the numbers do not fit each other.

    rope: how positions are turned unless a call says otherwise; its train_side tells where extrapolation begins.
    context: "none", or how context tokens of `context_channels` numbers condition: see `fitv2.model.context`.
    """

    width: int
    depth: int
    heads: int
    patch_size: int = 2
    in_channels: int = 4
    num_classes: int = 1000
    mlp_ratio: float = 4.0
    lora_rank: int | None = None
    qk_norm_affine: bool = False
    rope: RopeScheme = PLAIN
    context: str = "none"
    context_channels: int = 768

    def __post_init__(self) -> None:
        if self.width % (4 * self.heads):
            raise ValueError(
                f"width {self.width} with {self.heads} heads: the width of a head must be a whole multiple of 4, "
                "because rows and columns each turn pairs of its numbers"
            )
        if self.context not in CONTEXTS:
            raise ValueError(f"there is no context {self.context!r}; choose from {', '.join(CONTEXTS)}")
        if isinstance(self.rope, dict):  # As JSON has it.
            object.__setattr__(self, "rope", RopeScheme(**self.rope))

    @property
    def token_channels(self) -> int:
        return self.in_channels * self.patch_size**2

    @property
    def output_channels(self) -> int:
        """Numbers that the network gives per token."""
        return self.token_channels

    @property
    def mlp_hidden(self) -> int:
        return int(self.width * self.mlp_ratio) * 2 // 3

    @property
    def modulation_rank(self) -> int:
        return self.width // 4 if self.lora_rank is None else self.lora_rank

    # The parts in which relatives of FiTv2 differ from it: see `fitv2.model.fit1`.

    def build_attention(self) -> SelfAttention:
        return SelfAttention(self.width, self.heads, self.qk_norm_affine)

    def build_modulation(self) -> nn.Module:
        """A block's own part of the modulation, (B, D) to (B, 6 D)."""
        return LowRankModulation(self.width, self.modulation_rank)

    def build_global_modulation(self) -> nn.Module:
        """The part that all blocks share, (B, D) to (B, 6 D)."""
        return FullModulation(self.width, parts=6)


class FiTBlock(nn.Module):
    """Modulated self-attention and SwiGLU with gated residuals; the identity at initialisation."""

    def __init__(self, config: FiTConfig) -> None:
        super().__init__()
        self.attn = config.build_attention()
        self.mlp = SwiGLU(config.width, config.mlp_hidden)
        self.adaLN_modulation = config.build_modulation()
        self.cross = CrossAttention(config.width, config.heads) if config.context == "cross" else None

    def forward(
        self,
        x_TD: Tensor,
        c_BD: Tensor,
        global_B6D: Tensor,
        batch: TokenBatch,
        table: tuple[Tensor, Tensor],
        context: TokenBatch | None = None,
    ) -> Tensor:
        modulation_B6D = (global_B6D + self.adaLN_modulation(c_BD)).float()
        shift, scale, gate, *for_mlp = modulation_B6D.chunk(6, dim=-1)
        index = batch.image_index
        q, k, v = self.before_attention(x_TD, shift, scale, index, table)
        attended = packed_attention(q, k, v, batch, batch)
        if self.cross is None:
            return self.after_attention(x_TD, attended, gate, *for_mlp, index)
        x_TD = self.add_attention(x_TD, attended, gate, index)
        return self.add_mlp(x_TD + self.cross(x_TD, batch, context), *for_mlp, index)

    # Two halves around attention: all that is per token, so that `FiT.compile_blocks` can fuse each into a few kernels.
    # Shifts, scales and gates are (B, D), and spread over the tokens only inside: there a kernel reads them in passing.

    def before_attention(self, x_TD: Tensor, shift: Tensor, scale: Tensor, index: Tensor, table: tuple[Tensor, Tensor]):
        return self.attn.queries_keys_values(modulated_norm(x_TD, shift, scale, index), table)

    def after_attention(
        self,
        x_TD: Tensor,
        attended: Tensor,
        gate: Tensor,
        shift: Tensor,
        scale: Tensor,
        mlp_gate: Tensor,
        index: Tensor,
    ) -> Tensor:
        return self.add_mlp(self.add_attention(x_TD, attended, gate, index), shift, scale, mlp_gate, index)

    def add_attention(self, x_TD: Tensor, attended_TNH: Tensor, gate: Tensor, index: Tensor) -> Tensor:
        return torch.addcmul(x_TD, spread(gate, index), self.attn.proj(attended_TNH.flatten(1)))

    def add_mlp(self, x_TD: Tensor, shift: Tensor, scale: Tensor, gate: Tensor, index: Tensor) -> Tensor:
        return torch.addcmul(x_TD, spread(gate, index), self.mlp(modulated_norm(x_TD, shift, scale, index)))


class FiT(nn.Module):
    """The velocity network: (packed batch, t in [0, 1] with 1 = data, label) to one vector per token."""

    def __init__(self, config: FiTConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.token_budget = 0
        self.x_embedder = PatchEmbedder(config.token_channels, config.width)
        self.t_embedder = TimestepEmbedder(config.width)
        self.y_embedder = LabelEmbedder(config.num_classes, config.width)
        self.global_adaLN_modulation = config.build_global_modulation()
        self.blocks = nn.ModuleList(FiTBlock(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config.width, config.output_channels)
        if config.context != "none":
            self.context_embedder = ContextEmbedder(config.context_channels, config.width)
        for block in self.blocks:
            for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1_g, block.mlp.fc1_x, block.mlp.fc2):
                nn.init.xavier_uniform_(linear.weight)
                nn.init.zeros_(linear.bias)

    @property
    def null_label(self) -> int:
        """The label that stands for "no class"."""
        return self.config.num_classes

    def compile_blocks(self, token_budget: int = 0) -> None:
        """Fuses the element-wise work of the blocks with torch.compile, once for all blocks and any number of tokens.

        token_budget: in training, sequences below it get a tail up to it, an image of its own that is kept out of every
        result: all steps then have one shape. On a CPU this needs a C++ compiler; about 1.4 times the speed of eager
        on short images.
        """
        self.token_budget = token_budget
        for name in ("before_attention", "after_attention"):
            compiled = torch.compile(getattr(FiTBlock, name), dynamic=None if token_budget else True)
            for block in self.blocks:
                setattr(block, name, partial(compiled, block))

    def forward(
        self,
        batch: TokenBatch,
        t_B: Tensor,
        y_B: Tensor,
        rope: RopeScheme | None = None,
        context: TokenBatch | None = None,
    ) -> Tensor:
        """batch.x (T, C), t (B,) float in [0, 1], y (B,) int64 in [0, num_classes] to the velocity (T, C).

        rope: how positions are turned in this call; None: as the configuration says. context: of each image, for a
        model with one. Weights in half precision compute under autocast: norms, rotations and the residual stream stay
        float32. Raises ValueError where times, labels or contexts are not one per image, or the model takes no context.
        """
        dtype = self.final_layer.linear.weight.dtype
        if dtype in (torch.bfloat16, torch.float16) and not torch.is_autocast_enabled(batch.x.device.type):
            with torch.autocast(batch.x.device.type, dtype):
                return self(batch, t_B, y_B, rope, context)
        if (context is None) != (self.config.context == "none") or (context and len(context) != len(batch)):
            given = "none" if context is None else f"{len(context)}"
            raise ValueError(f"context={self.config.context!r} in the model, and {given} given for {len(batch)} images")
        if len(t_B) != len(batch) or len(y_B) != len(batch):
            raise ValueError(f"{len(t_B)} times and {len(y_B)} labels for {len(batch)} images: give one of each")
        rope = rope or self.config.rope
        lengths = list(zip(batch.lengths, context.lengths if context else batch.lengths, strict=True))
        # A graph is made for one mix of lengths anyway, and sorting numbers that it holds open cannot be traced.
        if torch.compiler.is_compiling() or all(shorter <= longer for shorter, longer in pairwise(lengths)):
            return self._forward_sorted(batch, t_B, y_B, rope, context)
        # Sorted by length, images of equal length become neighbours, and attention needs few products.
        order = sorted(range(len(batch)), key=lengths.__getitem__)
        back = sorted(range(len(order)), key=order.__getitem__)
        batch, context = batch.select(order), context.select(order) if context else None
        return batch.with_x(self._forward_sorted(batch, t_B[order], y_B[order], rope, context)).select(back).x

    def _forward_sorted(
        self, batch: TokenBatch, t_B: Tensor, y_B: Tensor, rope: RopeScheme, context: TokenBatch | None
    ) -> Tensor:
        c_BD = self.t_embedder(t_B) + self.y_embedder(y_B)
        # The residual stream stays float32 under autocast: sums of many small bfloat16 steps would lose them.
        sequence, positions = batch.with_x(self.x_embedder(batch.x).float()), batch.positions
        own = None
        if context is not None:
            context = self.context_embedder(context)
        if self.config.context == "joint":
            c_BD = c_BD + context.image_mean(context.x)
            sequence, positions, own = join(sequence, context)
        x_TD = self._blocks(sequence, positions, batch.hw, c_BD, rope, context)
        # With a device map the last block may be on another device than the first.
        x_TD = x_TD if own is None else x_TD[own.to(x_TD.device)]
        return self.final_layer(x_TD, c_BD, batch)

    def _blocks(
        self,
        batch: TokenBatch,
        positions_T2: Tensor,
        hw_B2: Tensor,
        c_BD: Tensor,
        rope: RopeScheme,
        context: TokenBatch | None,
    ) -> Tensor:
        tokens = len(batch.x)
        if tokens < self.token_budget and torch.is_grad_enabled():
            batch, context = batch.with_tail(self.token_budget), context and context.with_tail(len(context.x) + 1)
            hw_B2, c_BD = torch.cat((hw_B2, batch.hw[-1:])), F.pad(c_BD, (0, 0, 0, 1))
            positions_T2 = F.pad(positions_T2, (0, 0, 0, self.token_budget - tokens))
        head_dim = self.config.width // self.config.heads
        table = rotation_table(positions_T2, batch.image_index, hw_B2, head_dim, rope)
        global_B6D = self.global_adaLN_modulation(c_BD)
        x_TD = batch.x
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x_TD = checkpoint(block, x_TD, c_BD, global_B6D, batch, table, context, use_reentrant=False)
            else:
                x_TD = block(x_TD, c_BD, global_B6D, batch, table, context)
        return x_TD[:tokens]


def model_of(config: FiTConfig, state: dict[str, Tensor]) -> FiT:
    """A network whose weights are the tensors of `state` themselves, in eval mode; errors as of `load_strictly`."""
    with torch.device("meta"):
        model = FiT(config)
    load_strictly(model, state, assign=True)
    return model.eval()


def load_strictly(model: FiT, state: dict[str, Tensor], assign: bool = False) -> None:
    """Loads `state` (assign: makes its tensors the model's own), or raises ValueError listing every wrong key."""
    own = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    problems = [f"missing {key}" for key in own.keys() - state.keys()]
    problems += [f"unexpected {key}" for key in state.keys() - own.keys()]
    problems += [
        f"{key} has shape {tuple(state[key].shape)}, the model needs {own[key]}"
        for key in own.keys() & state.keys()
        if tuple(state[key].shape) != own[key]
    ]
    if problems:
        raise ValueError("the weights do not fit the model: " + "; ".join(sorted(problems)))
    model.load_state_dict(state, assign=assign)

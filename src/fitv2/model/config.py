"""What fixes a network: its sizes, and the parts in which relatives of FiTv2 differ."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .attention import SelfAttention
from .context import CONTEXTS
from .modulation import FullModulation, LowRankModulation
from .rope import PLAIN, RopeScheme


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

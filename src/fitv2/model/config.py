"""What fixes a network: sizes that any has, and the parts in which relatives of FiTv2 differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from ..errors import UserError
from ..legacy import PREDICTIONS
from .attention import SelfAttention
from .context import CONTEXTS
from .modulation import FullModulation, LowRankModulation, NoSharedModulation
from .rope import PLAIN, RopeScheme

Modulation = Literal["low-rank", "full"]
Prediction = Literal["velocity", "epsilon"]


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What fixes any network here. Raises ValueError for a prediction that is not known.

    prediction: "velocity", trained as a rectified flow with times in [0, 1], or "noise", trained by diffusion with
    steps 0 to 999: the noise and then where its variance lies, twice the channels.
    """

    width: int
    depth: int
    heads: int
    patch_size: int = 2
    in_channels: int = 4
    num_classes: int = 1000
    prediction: Prediction = "velocity"

    def __post_init__(self) -> None:
        object.__setattr__(self, "prediction", PREDICTIONS.get(self.prediction, self.prediction))
        check_known("prediction", self.prediction, get_args(Prediction))

    @property
    def token_channels(self) -> int:
        return self.in_channels * self.patch_size**2

    @property
    def output_channels(self) -> int:
        """Numbers that the network gives per token."""
        return self.token_channels * (2 if self.prediction == "epsilon" else 1)

    @property
    def fixed_grid(self) -> tuple[int, int] | None:
        """Rows and columns of tokens of every image; None: of any."""
        return None


@dataclass(frozen=True, kw_only=True)
class FiTConfig(NetworkConfig):
    """Everything that fixes the network. Raises ValueError where the numbers do not fit each other.

    modulation: "low-rank", in each block a pair of rank `lora_rank` beside the projection that all share, or "full", in
    each block a projection of its own.
    rope: how positions are turned unless a call says otherwise; its train_side tells where extrapolation begins.
    context: "none", or how context tokens of `context_channels` numbers condition: see `fitv2.model.context`.
    """

    mlp_ratio: float = 4.0
    lora_rank: int | None = None
    qk_norm: bool = True
    qk_norm_affine: bool = False
    modulation: Modulation = "low-rank"
    rope: RopeScheme = PLAIN
    context: str = "none"
    context_channels: int = 768

    def __post_init__(self) -> None:
        super().__post_init__()
        check_known("context", self.context, CONTEXTS)
        check_known("modulation", self.modulation, get_args(Modulation))
        if self.width % (4 * self.heads):
            raise UserError(
                f"width {self.width} with {self.heads} heads: the width of a head must be a whole multiple of 4, "
                "because rows and columns each turn pairs of its numbers"
            )
        if self.lora_rank is not None and self.modulation == "full":
            raise UserError(f"lora_rank {self.lora_rank} is of low-rank modulation, and this one is full")
        if self.qk_norm_affine and not self.qk_norm:
            raise UserError("qk_norm_affine is a scale in the norm of queries and keys, and here they have none")
        if isinstance(self.rope, dict):  # As JSON has it.
            object.__setattr__(self, "rope", RopeScheme(**self.rope))

    @property
    def mlp_hidden(self) -> int:
        return int(self.width * self.mlp_ratio) * 2 // 3

    @property
    def modulation_rank(self) -> int:
        return self.width // 4 if self.lora_rank is None else self.lora_rank

    def build_attention(self) -> SelfAttention:
        return SelfAttention(self.width, self.heads, self.qk_norm, self.qk_norm_affine)

    def build_modulation(self) -> nn.Module:
        """A block's own part of the modulation, (B, D) to (B, 6 D)."""
        if self.modulation == "full":
            return FullModulation(self.width, parts=6)
        return LowRankModulation(self.width, self.modulation_rank)

    def build_global_modulation(self) -> nn.Module:
        """The part that all blocks share, (B, D) to (B, 6 D)."""
        return NoSharedModulation() if self.modulation == "full" else FullModulation(self.width, parts=6)


def check_known(field: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UserError(f"there is no {field} {value!r}; choose from {', '.join(known)}")

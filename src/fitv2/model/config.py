"""Configurations of the networks, as plain data. Loads neither torch nor the modules that it describes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

from ..errors import UserError
from ..legacy import PREDICTIONS
from ..messages import check_known

Modulation = Literal["low-rank", "full"]
Prediction = Literal["velocity", "data", "epsilon"]
Context = Literal["none", "cross", "joint"]
# Ways to scale the frequencies of RoPE, and factors on the attention logits: `fitv2.model.rope` computes them.
RopeMethod = Literal["none", "interpolation", "ntk-aware", "ntk-by-parts", "yarn"]
AttentionFactor = Literal["none", "yarn", "pro1", "pro2", "paper"]
# The extrapolations by the names of Table III of the paper: (method, per axis).
Extrapolation = Literal["none", "pi", "ntk", "parts", "yarn", "vision-pi", "vision-ntk", "vision-parts", "vision-yarn"]
EXTRAPOLATIONS: dict[str, tuple[RopeMethod, bool]] = {
    "none": ("none", False),
    "pi": ("interpolation", False),
    "ntk": ("ntk-aware", False),
    "parts": ("ntk-by-parts", False),
    "yarn": ("yarn", False),
    "vision-pi": ("interpolation", True),
    "vision-ntk": ("ntk-aware", True),
    "vision-parts": ("ntk-by-parts", True),
    "vision-yarn": ("yarn", True),
}


@dataclass(frozen=True, kw_only=True)
class RopeScheme:
    """The RoPE extrapolation scheme for images larger than those of training.

    Up to the training size every method equals plain RoPE.

    Attributes:
        method: How frequencies are lowered.
        per_axis: Whether height and width have each their own ratio to the training size (the *Vision* forms), instead
            of both the larger one.
        attention: A factor on the attention logits.
        train_side: Patches per side of the square of the training budget.
        theta: The base of the frequencies.
        target: (rows, columns) that the frequencies are made for; None means each image's own.

    Raises:
        UserError: An unknown name or an impossible size.
    """

    method: RopeMethod = "none"
    per_axis: bool = False
    attention: AttentionFactor = "none"
    train_side: int = 16
    theta: float = 10000.0
    target: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_known("RoPE method", self.method, get_args(RopeMethod))
        check_known("attention scale", self.attention, get_args(AttentionFactor))
        if self.train_side < 2 or (self.target is not None and min(self.target) < 1):
            raise UserError(f"train_side {self.train_side} and target {self.target} must be patches per side")
        if self.theta <= 1:
            raise UserError(f"theta {self.theta} must be more than 1")
        if self.target is not None:
            rows, columns = self.target
            object.__setattr__(self, "target", (rows, columns))

    def named(self, name: str, attention: str | None = None) -> RopeScheme:
        """Returns this scheme with the method of an `EXTRAPOLATIONS` name, for each image's own size.

        attention: None means YaRN's own factor for YaRN, and none for the others. Raises UserError for an unknown name.
        """
        check_known("extrapolation", name, EXTRAPOLATIONS)
        method, per_axis = EXTRAPOLATIONS[name]
        attention = attention or ("yarn" if method == "yarn" else "none")
        return replace(self, method=method, per_axis=per_axis, attention=attention, target=None)


DEFAULT_ROPE = RopeScheme()


class OptionalParts:
    """Defaults, for networks that lack them, of parts that only some networks have; see `FiTConfig`.

    This is not a dataclass: these become fields, which are stored, only in a configuration that redeclares them.
    """

    context: Context = "none"
    internal_head: int | None = None
    position_range: int | None = None
    target_blocks: int = 0


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(OptionalParts):
    """What fixes any network here.

    Attributes:
        width: Numbers per token in the residual stream.
        depth: Number of blocks.
        heads: Number of attention heads.
        patch_size: Side of a patch in latent pixels.
        in_channels: Channels of a latent.
        num_classes: Number of classes; the label of that number is the null class.
        prediction: "velocity" or "data", trained as a rectified flow with times in [0, 1]: both return a velocity,
            which "data" computes from the clean image that the last layer predicts. Or "epsilon", trained by diffusion
            with steps 0 to 999: twice as many channels, the noise and then the learned variance as in improved DDPM.

    Raises:
        UserError: An unknown prediction, or a number that is not positive.
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
        for name, value in vars(self).items():
            least = 0 if name in ("num_classes", "target_blocks") else 1
            if isinstance(value, int) and not isinstance(value, bool) and value < least:
                raise UserError(f"{name} {value} must be at least {least}")

    @property
    def null_label(self) -> int:
        """The label that stands for "no class"."""
        return self.num_classes

    @property
    def token_channels(self) -> int:
        """Numbers per input token."""
        return self.in_channels * self.patch_size**2

    @property
    def output_channels(self) -> int:
        """Numbers per output token."""
        return self.token_channels * (2 if self.prediction == "epsilon" else 1)

    @property
    def fixed_grid(self) -> tuple[int, int] | None:
        """Rows and columns of tokens of every image; None if any are allowed."""
        return None

    @property
    def takes_text(self) -> bool:
        """Whether each image has a context, such as that of a text."""
        return False


def fitting_heads(width: int, heads: int, unit_of: Callable[[int], int]) -> str:
    """Returns the end of a sentence that suggests the nearest numbers of heads and the nearest width that go together.

    unit_of: Returns, for a number of heads, the number of which the width must be a multiple.
    """
    numbers = [number for number in range(1, width + 1) if width % unit_of(number) == 0]
    near = sorted(sorted(numbers, key=lambda number: (abs(number - heads), -number))[:2])
    unit = unit_of(heads)
    other = f"a width of {max(round(width / unit), 1) * unit}"
    return f"take {' or '.join(map(str, near))} heads, or {other}" if near else f"take {other}"


@dataclass(frozen=True, kw_only=True)
class FiTConfig(NetworkConfig):
    """The configuration of FiTv2, and of all between FiT and FiTv2.

    Attributes:
        mlp_ratio: The hidden width of a plain MLP as a multiple of the width; SwiGLU has 2/3 of it.
        lora_rank: The rank of a block's own modulation; None means a quarter of the width.
        qk_norm: Whether queries and keys are normalised.
        qk_norm_affine: Whether that LayerNorm has a learned scale.
        modulation: "low-rank", a pair of rank `lora_rank` in each block beside a projection that all blocks share
            (AdaLN-LoRA), or "full", a projection in each block.
        rope: The RoPE scheme unless a call gives another; its train_side tells where extrapolation begins.
        context: "none", or how context tokens of `context_channels` numbers condition: see `fitv2.model.context`.
        context_channels: Numbers per context token.
        internal_head: The number of blocks after which a second head predicts the same as the last one, for internal
            guidance (arXiv 2512.24176); None means there is none.
        position_range: Rows and columns have positions spread from 0 to below this number instead of 0, 1, 2 and so on,
            so that larger sizes use positions known from training; see `fitv2.positions`. None means 0, 1, 2 and so on.
        target_blocks: The number of blocks at the end that are conditioned on the end time of a step instead of its
            start time: the network then predicts the mean velocity between both. See `fitv2.flow.transition`.

    Raises:
        UserError: Numbers that do not fit each other.
    """

    mlp_ratio: float = 4.0
    lora_rank: int | None = None
    qk_norm: bool = True
    qk_norm_affine: bool = False
    modulation: Modulation = "low-rank"
    rope: RopeScheme = DEFAULT_ROPE
    context: Context = "none"
    context_channels: int = 768
    internal_head: int | None = None
    position_range: int | None = None
    target_blocks: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_known("context", self.context, get_args(Context))
        check_known("modulation", self.modulation, get_args(Modulation))
        if self.width % (4 * self.heads):
            raise UserError(
                f"width {self.width} with {self.heads} heads: the width of a head must be a whole multiple of 4, "
                "because rows and columns each rotate pairs of its numbers; "
                + fitting_heads(self.width, self.heads, lambda heads: 4 * heads)
            )
        if self.lora_rank is not None and self.modulation == "full":
            raise UserError(f"lora_rank {self.lora_rank} is of low-rank modulation, and this one is full")
        if self.mlp_hidden < 1:
            raise UserError(f"mlp_ratio {self.mlp_ratio} leaves nothing of the MLP's hidden width")
        if self.qk_norm_affine and not self.qk_norm:
            raise UserError("qk_norm_affine is a scale in the norm of queries and keys, and here they have none")
        if self.internal_head is not None and not 0 < self.internal_head < self.depth:
            raise UserError(
                f"internal_head {self.internal_head} must be from 1 to {self.depth - 1} of {self.depth} blocks"
            )
        if not 0 <= self.target_blocks < self.depth or (self.target_blocks and self.internal_head):
            raise UserError(
                f"target_blocks {self.target_blocks} must be fewer than the {self.depth} blocks, without internal_head"
            )
        if self.prediction == "epsilon" and (self.internal_head or self.position_range or self.target_blocks):
            raise UserError(
                "internal_head, position_range and target_blocks are of models of a flow; this one predicts epsilon"
            )
        if self.position_range is not None and self.position_range < 2:
            raise UserError(f"position_range {self.position_range} must be at least 2 patches")
        if isinstance(self.rope, dict):  # As JSON has it.
            object.__setattr__(self, "rope", RopeScheme(**self.rope))
        if self.position_range is not None and self.rope.method != "none":
            raise UserError(
                "position_range and an extrapolation would move positions twice: use one of them for sizes beyond "
                "training"
            )

    @property
    def takes_text(self) -> bool:
        """Whether each image has a context, such as that of a text."""
        return self.context != "none"

    @property
    def head_dim(self) -> int:
        """Numbers per attention head."""
        return self.width // self.heads

    @property
    def mlp_hidden(self) -> int:
        """Hidden width of SwiGLU."""
        return int(self.width * self.mlp_ratio) * 2 // 3

    @property
    def modulation_rank(self) -> int | None:
        """Rank of a block's own modulation; None if it is full."""
        if self.modulation == "full":
            return None
        return self.width // 4 if self.lora_rank is None else self.lora_rank


@dataclass(frozen=True, kw_only=True)
class FiTv1Config(FiTConfig):
    """The configuration of FiT, the predecessor (arXiv 2402.12376), or of models between it and FiTv2 (its Table II).

    FiT has no normalisation of queries and keys, a SwiGLU of the full width, its own AdaLN in every block, and two
    outputs per input channel: the noise and the learned variance. It is trained by diffusion (`fitv2.diffusion`), with
    t (B,) as steps 0 to 999, which need not be whole. The authors' commit clamps t to 1.0, so that all steps but the
    first look alike to the network; clamp t before the call to reproduce that. The authors' padding has no counterpart.
    """

    qk_norm: bool = False
    modulation: Modulation = "full"
    prediction: Prediction = "epsilon"

    @property
    def mlp_hidden(self) -> int:
        """Hidden width of SwiGLU."""
        return int(self.width * self.mlp_ratio)


@dataclass(frozen=True, kw_only=True)
class SiTConfig(NetworkConfig):
    """The configuration of SiT.

    Attributes:
        side: Rows, and columns, of tokens of every image.

    Raises:
        UserError: Numbers that do not fit each other.
    """

    side: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads or self.width % 4:
            raise UserError(
                f"width {self.width} with {self.heads} heads: the width must be a multiple of the heads, and of 4, "
                "because rows and columns each have sines and cosines; "
                + fitting_heads(self.width, self.heads, partial(math.lcm, 4))
            )

    @property
    def fixed_grid(self) -> tuple[int, int]:
        """Rows and columns of tokens of every image."""
        return self.side, self.side


@dataclass(frozen=True, kw_only=True)
class DiTConfig(SiTConfig):
    """The configuration of DiT. The network takes t (B,) as steps 0 to 999, whole or between, as that of FiT does."""

    prediction: Prediction = "epsilon"

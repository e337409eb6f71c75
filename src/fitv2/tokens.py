"""Packed tokens: the one representation of a batch of images of different sizes.

Shape suffixes used throughout: T packed tokens of a batch, B images, C token channels (c * p * p), D width, N heads,
H head dimension. Token n of an image of h x w patches is the patch in row n // w and column n % w; inside a token the
order is channel, row in patch, column in patch (channel slowest).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from copy import copy
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, library

Value = TypeVar("Value")


class TokenBatch:
    """B images of any sizes, concatenated to one sequence of T tokens; no padding, no mask.

    Views and loops depend on the sizes, so these are Python numbers: nothing reads them back from a device, and
    torch.compile sees constants. A batch is immutable, so batches of the same images share all that derives from sizes.

    Args:
        x: (T, C) float, on any device.
        hw: The height and width of each image in patches, (B, 2) int64 or pairs.

    Attributes:
        sizes: The height and width of each image.
        lengths: The number of tokens of each image.
        equal_length_runs: (images, tokens per image) of each run of neighbouring images of equal length.
        counts: (B,) int64 on the CPU, the lengths.
        image_index: (T,) int64, the image of each token. This and the following are on the device of x.
        offsets: (B + 1,) int32, the first token of each image, and T.
        positions: (T, 2) int64, the row and column of each token in its image.

    Raises:
        ValueError: Shapes or counts that do not fit.
    """

    def __init__(self, x: Tensor, hw: Tensor | Sequence[tuple[int, int]]) -> None:
        if isinstance(hw, Tensor):
            if hw.ndim != 2 or hw.shape[1] != 2 or hw.dtype != torch.int64:
                raise ValueError(f"hw must be (B, 2) int64, not {tuple(hw.shape)} {hw.dtype}")
            hw = hw.tolist()
        self.sizes: list[tuple[int, int]] = [(h, w) for h, w in hw]
        if not self.sizes or any(h < 1 or w < 1 for h, w in self.sizes):
            raise ValueError("a batch needs at least one image, and every side at least one patch")
        self.lengths = [h * w for h, w in self.sizes]
        self.equal_length_runs = runs_of(self.lengths)
        self.counts, widths = torch.tensor(self.lengths), torch.tensor([w for _, w in self.sizes])
        self.offsets = F.pad(self.counts.cumsum(0), (1, 0)).int()
        self.image_index = torch.arange(len(self)).repeat_interleave(self.counts, output_size=sum(self.lengths))
        n = torch.arange(sum(self.lengths)) - (self.counts.cumsum(0) - self.counts)[self.image_index]
        self.positions = torch.stack((n // widths[self.image_index], n % widths[self.image_index]), dim=1)
        self._made: dict[Hashable, Any] = {}
        self._set(x)

    def _set(self, x: Tensor) -> None:
        if x.ndim != 2 or len(x) != sum(self.lengths):
            raise ValueError(f"x must be (T, C) with T = {sum(self.lengths)} tokens, not {tuple(x.shape)}")
        self.x, indices = x, (self.image_index, self.offsets, self.positions)
        if x.device != self.image_index.device:
            moved = self.cached("indices", lambda: [upload(index, x.device) for index in indices])
            self.image_index, self.offsets, self.positions = moved

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def hw(self) -> Tensor:
        """(B, 2) int64 on the CPU: the sizes as a tensor."""
        return torch.tensor(self.sizes)

    @property
    def row_of_token(self) -> RowOfToken:
        """The row of each token in a tensor with a row per image."""
        return RowOfToken(self.image_index, self.counts, self.offsets)

    def cached(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Returns make(), called once per key for all batches of the same images on this device."""
        if torch.compiler.is_compiling():  # What is traced is part of its graph, and cannot be kept.
            return make()
        # Training cannot use a tensor made in inference mode.
        key = key, self.x.device, torch.is_inference_mode_enabled()
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def with_x(self, x: Tensor) -> TokenBatch:
        """Returns the same images with other token values, (T, any)."""
        batch = copy(self)
        batch._set(x)
        return batch

    def _like(self, x: Tensor, key: Hashable, sizes: Callable[[], list[tuple[int, int]]]) -> TokenBatch:
        """Returns other images made of these; what follows from their sizes is computed once for the key."""
        return self.cached(key, lambda: TokenBatch(x.new_empty(len(x), 0), sizes())).with_x(x)

    def to(self, *args: Any, **kwargs: Any) -> TokenBatch:
        """Returns the batch with x on another device or in another dtype; arguments as of `Tensor.to`."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)  # pyright: ignore
        x = self.x if dtype is None else self.x.to(dtype)
        return self.with_x(x if device is None else upload(x, device))

    def select(self, images: Sequence[int]) -> TokenBatch:
        """Returns the images of the given indices, in that order; an index may repeat."""
        parts = self.x.split(self.lengths)
        x = torch.cat([parts[i] for i in images])
        return self._like(x, ("select", *images), lambda: [self.sizes[i] for i in images])

    def pad_to(self, total: int, longest: int) -> TokenBatch:
        """Returns the batch followed by images of zeros, of 1 x `longest` tokens or what is left, up to T = total."""
        whole, rest = divmod(total - len(self.x), longest)
        tail = [(1, longest)] * whole + [(1, rest)] * (rest > 0)
        x = F.pad(self.x, (0, 0, 0, total - len(self.x)))
        return self._like(x, ("tail", total, longest), lambda: [*self.sizes, *tail])

    def expand_to_tokens(self, per_image: Tensor) -> Tensor:
        """Returns (B, ...) per image as (T, ...) per token."""
        return expand_to_tokens(per_image, self.row_of_token)

    def image_mean(self, per_token: Tensor) -> Tensor:
        """Returns the mean (B, ...) of (T, ...) over each image's own tokens."""
        lengths = self.offsets.diff().to(per_token.dtype)
        return segment_sum(per_token, *self.row_of_token) / lengths.view(-1, *[1] * (per_token.ndim - 1))

    @classmethod
    def from_latents(cls, latents: Sequence[Tensor], patch_size: int) -> TokenBatch:
        """Packs latents (c, height, width), each of its own size.

        Raises ValueError when a side is not divisible by the patch size.
        """
        hw = [(latent.shape[1] // patch_size, latent.shape[2] // patch_size) for latent in latents]
        return cls(torch.cat([patchify(latent, patch_size) for latent in latents]), hw)

    def to_latents(self, patch_size: int) -> list[Tensor]:
        """Is the inverse of `from_latents`: returns one (c, height, width) tensor per image."""
        parts = self.x.split(self.lengths)
        return [unpatchify(part, size, patch_size) for part, size in zip(parts, self.sizes, strict=True)]


class Denoiser(Protocol):
    """A network as objectives and samplers see it: a function of packed images, their times and their labels."""

    def __call__(
        self, batch: TokenBatch, t_B: Tensor, y_B: Tensor, context: TokenBatch | None = None, /, **options: Any
    ) -> Tensor:
        """Computes the network's output, (T, output channels).

        Args:
            batch: The images on their way between noise and data.
            t_B: (B,) float, times in [0, 1] where 1 is data; steps in [0, 999] for a network that predicts noise.
            y_B: (B,) int64 in [0, num_classes].
            context: The packed context of the images, for a network with one.
            **options: What a kind of network takes beyond these.
        """
        ...


def upload(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Returns the tensor on the device; a copy from the CPU to a GPU does not wait for the GPU's work."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def drop_conditions(
    labels_B: Tensor, null_label: int, context: TokenBatch | None, probability: float, generator: torch.Generator
) -> tuple[Tensor, TokenBatch | None]:
    """Returns labels (B,) and context, where an image loses both together with this probability.

    Args:
        labels_B: (B,) int64.
        null_label: What stands for no class.
        context: The packed context of each image and, last, that of no text (B + 1); None for a network without one.
        probability: From 0 to 1.
        generator: On the CPU, so that all devices get the same numbers: one uniform number per image.
    """
    dropped_B = torch.rand(len(labels_B), generator=generator) < probability
    labels_B = labels_B.masked_fill(upload(dropped_B, labels_B.device), null_label)
    if context is None:
        return labels_B, None
    return labels_B, context.select([len(labels_B) if gone else i for i, gone in enumerate(dropped_B.tolist())])


def pack_context(contexts: Sequence[Tensor]) -> TokenBatch:
    """Returns the context batch of one (tokens, E) tensor per image, each of its own length of at least one token."""
    return TokenBatch(torch.cat(list(contexts)), [(len(context), 1) for context in contexts])


def runs_of(values: Sequence[Value]) -> list[tuple[int, Value]]:
    """Returns (count, value) of each run of equal neighbours."""
    runs: list[tuple[int, Value]] = []
    for value in values:  # itertools.groupby would have torch.compile fix the values.
        if runs and runs[-1][1] == value:
            runs[-1] = (runs[-1][0] + 1, value)
        else:
            runs.append((1, value))
    return runs


def patchify(latent: Tensor, patch_size: int) -> Tensor:
    """Cuts (c, height, width) into (tokens, c * p * p)."""
    channels, height, width = latent.shape
    p = patch_size
    if height % p or width % p:
        raise ValueError(f"a latent of {height}x{width} cannot be cut into patches of {p}x{p}")
    patches = latent.reshape(channels, height // p, p, width // p, p).permute(1, 3, 0, 2, 4)
    return patches.reshape(-1, channels * p * p)


def unpatchify(tokens: Tensor, size: tuple[int, int], patch_size: int) -> Tensor:
    """Joins (tokens, c * p * p) of an image of `size` (rows, columns of patches) to (c, height, width)."""
    (rows, columns), p = size, patch_size
    channels, rest = divmod(tokens.shape[1], p * p)
    if rest:
        raise ValueError(f"tokens of {tokens.shape[1]} numbers do not hold whole {p}x{p} patches")
    patches = tokens.reshape(rows, columns, channels, p, p).permute(2, 0, 3, 1, 4)
    return patches.reshape(channels, rows * p, columns * p)


class RowOfToken(NamedTuple):
    """The row of each token in a tensor with a row per image; counts and offsets as of `TokenBatch`.

    Gradients need all three, and an index that counts up from 0 to B - 1.
    """

    row_index: Tensor
    counts: Tensor
    offsets: Tensor


def expand_to_tokens(per_image: Tensor, row_of_token: RowOfToken) -> Tensor:
    """Returns (B, ...) per image as (T, ...) per token."""
    return _ExpandToTokens.apply(per_image, *row_of_token)


class _ExpandToTokens(torch.autograd.Function):
    """A gather whose gradient is a dense sum; scatter-add is slower, and on a GPU not deterministic."""

    @staticmethod
    def forward(ctx: Any, per_image: Tensor, index: Tensor, counts: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(index, counts, offsets)
        return per_image.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return segment_sum(grads[0], *ctx.saved_tensors), None, None, None


@library.custom_op("fitv2::segment_sum", mutates_args=())
def segment_sum(per_token: Tensor, index: Tensor, counts: Tensor, offsets: Tensor) -> Tensor:
    """Returns the sum (B, ...) of (T, ...) over each image's tokens.

    An operator of its own, which torch.compile leaves alone: its own scatter-add on a CPU is slow.
    """
    if per_token.device.type == "cuda":  # No other accelerator has the kernel.
        return sum_segments(per_token, offsets)
    # A dense sum for each run of images of equal length: fastest on a CPU, where starting one costs nothing.
    runs = runs_of(counts.tolist())
    parts = per_token.split([images * length for images, length in runs])
    return torch.cat([part.unflatten(0, run).sum(1) for part, run in zip(parts, runs, strict=True)])


@segment_sum.register_fake
def _(per_token: Tensor, index: Tensor, counts: Tensor, offsets: Tensor) -> Tensor:
    # Not len(): as a plain number it would be a constant of the graph, one for every number of images.
    return per_token.new_empty(counts.shape[0], *per_token.shape[1:])


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return expand_to_tokens(grad, RowOfToken(*ctx.saved_tensors)), None, None, None


def _keep_rows(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


segment_sum.register_autograd(_gradients, setup_context=_keep_rows)


def sum_segments(per_token: Tensor, offsets: Tensor) -> Tensor:
    """Returns the same by one kernel for all lengths; unsafe leaves out a check that would wait for the device."""
    full = per_token.to(torch.promote_types(per_token.dtype, torch.float32)).contiguous()
    return torch.segment_reduce(full, "sum", offsets=offsets, unsafe=True).to(per_token.dtype)

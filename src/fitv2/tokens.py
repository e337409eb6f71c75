"""Packed tokens: the one representation of a batch of pictures of different sizes.

Shape suffixes used throughout: T packed tokens of a batch, B images, C token channels (c * p * p), D width, N heads,
H head dimension. Token n of an image of h x w patches is the patch in row n // w and column n % w; inside a token the
order is channel, row in patch, column in patch (channel slowest).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, library

Value = TypeVar("Value")


class TokenBatch:
    """B images of any sizes, concatenated to one sequence of T tokens; no padding, no mask.

    x: (T, C) float, any device. hw: each image's height and width in patches, (B, 2) int64 or pairs. Sizes steer Python
    (views, loops), so they are kept as its own numbers: nothing reads them back from a device, and torch.compile sees
    constants. Treat a batch as immutable: batches of the same images share what follows from their sizes.
    Raises ValueError when the shapes or counts do not fit.

    sizes: height and width of each image. lengths: its number of tokens. runs: (images, tokens per image) of each run
    of neighbouring images of equal length. image_index: (T,) int64, the image that each token belongs to. offsets:
    (B + 1,) int32, the first token of each image, and T. positions: (T, 2) int64, row and column of each token in its
    image. counts: (B,) int64 on the CPU, the lengths.
    """

    def __init__(self, x: Tensor, hw: Tensor | Sequence[tuple[int, int]]) -> None:
        if isinstance(hw, Tensor):
            if hw.ndim != 2 or hw.shape[1] != 2 or hw.dtype != torch.int64:
                raise ValueError(f"hw must be (B, 2) int64, not {tuple(hw.shape)} {hw.dtype}")
            hw = hw.tolist()
        self.sizes = [(h, w) for h, w in hw]
        if not self.sizes or any(h < 1 or w < 1 for h, w in self.sizes):
            raise ValueError("a batch needs at least one image, and every side at least one patch")
        self.lengths = [h * w for h, w in self.sizes]
        self.runs = runs_of(self.lengths)
        lengths, widths = torch.tensor(self.lengths), torch.tensor([w for _, w in self.sizes])
        index = torch.arange(len(self.sizes)).repeat_interleave(lengths, output_size=sum(self.lengths))
        n = torch.arange(sum(self.lengths)) - (lengths.cumsum(0) - lengths)[index]
        self.image_index = index.to(x.device)
        self.counts = lengths
        self.offsets = F.pad(lengths.cumsum(0), (1, 0)).int().to(x.device)
        self.positions = torch.stack((n // widths[index], n % widths[index]), dim=1).to(x.device)
        self._set(x)

    def _set(self, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[0] != sum(self.lengths):
            raise ValueError(f"x must be (T, C) with T = {sum(self.lengths)} tokens, not {tuple(x.shape)}")
        self.x = x

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def hw(self) -> Tensor:
        """(B, 2) int64 on the CPU: the sizes as a tensor."""
        return torch.tensor(self.sizes)

    @property
    def rows(self) -> Rows:
        """Where in a tensor with a row per image each token finds its image's."""
        return Rows(self.image_index, self.counts)

    def with_x(self, x: Tensor) -> TokenBatch:
        """The same images with other token values, (T, any)."""
        if x.device != self.x.device:
            return TokenBatch(x, self.sizes)
        batch = copy(self)
        batch._set(x)
        return batch

    def to(self, *args, **kwargs) -> TokenBatch:
        """x on another device or in another dtype, as `Tensor.to`."""
        return self.with_x(self.x.to(*args, **kwargs))

    def select(self, images: Sequence[int]) -> TokenBatch:
        """The images of the given indices, in that order; an index may repeat."""
        parts = self.x.split(self.lengths)
        return TokenBatch(torch.cat([parts[i] for i in images]), [self.sizes[i] for i in images])

    def with_tail(self, total: int, longest: int) -> TokenBatch:
        """The same, then images of zeros, each of 1 x `longest` tokens or what is left, that make T the total."""
        whole, rest = divmod(total - len(self.x), longest)
        tail = [(1, longest)] * whole + [(1, rest)] * (rest > 0)
        return TokenBatch(F.pad(self.x, (0, 0, 0, total - len(self.x))), [*self.sizes, *tail])

    def spread(self, per_image: Tensor) -> Tensor:
        """(B, ...) per image to (T, ...) per token."""
        return spread(per_image, self.rows)

    def image_mean(self, per_token: Tensor) -> Tensor:
        """(T, ...) per token to (B, ...): the mean over each image's own tokens."""
        lengths = torch.tensor(self.lengths, device=per_token.device, dtype=per_token.dtype)
        return _sum_runs(per_token, self.runs) / lengths.view(-1, *[1] * (per_token.ndim - 1))

    @classmethod
    def from_latents(cls, latents: Sequence[Tensor], patch_size: int) -> TokenBatch:
        """Latents (c, height, width), each of its own size, to packed tokens.

        Raises ValueError when a side is not divisible by the patch size.
        """
        tokens = [patchify(latent, patch_size) for latent in latents]
        hw = [(latent.shape[1] // patch_size, latent.shape[2] // patch_size) for latent in latents]
        return cls(torch.cat(tokens), hw)

    def to_latents(self, patch_size: int) -> list[Tensor]:
        """The inverse of `from_latents`: one (c, height, width) tensor per image."""
        parts = self.x.split(self.lengths)
        return [unpatchify(part, size, patch_size) for part, size in zip(parts, self.sizes, strict=True)]


def runs_of(values: Sequence[Value]) -> list[tuple[int, Value]]:
    """(count, value) of each run of equal neighbours; itertools.groupby would have torch.compile fix the values."""
    runs: list[tuple[int, Value]] = []
    for value in values:
        if runs and runs[-1][1] == value:
            runs[-1] = (runs[-1][0] + 1, value)
        else:
            runs.append((1, value))
    return runs


def patchify(latent: Tensor, patch_size: int) -> Tensor:
    """(c, height, width) to (tokens, c * p * p)."""
    channels, height, width = latent.shape
    p = patch_size
    if height % p or width % p:
        raise ValueError(f"a latent of {height}x{width} cannot be cut into patches of {p}x{p}")
    patches = latent.reshape(channels, height // p, p, width // p, p).permute(1, 3, 0, 2, 4)
    return patches.reshape(-1, channels * p * p)


def unpatchify(tokens: Tensor, size: tuple[int, int], patch_size: int) -> Tensor:
    """(tokens, c * p * p) of an image of `size` (rows, columns of patches) to (c, height, width)."""
    rows, columns = size
    p = patch_size
    channels, rest = divmod(tokens.shape[1], p * p)
    if rest:
        raise ValueError(f"tokens of {tokens.shape[1]} numbers do not hold whole {p}x{p} patches")
    patches = tokens.reshape(rows, columns, channels, p, p).permute(2, 0, 3, 1, 4)
    return patches.reshape(channels, rows * p, columns * p)


class Rows(NamedTuple):
    """index: (T,) int64, the row of each token. counts: (B,) int64 on the CPU, the tokens of each row, which gradients
    need; there the index has to count up from 0 to B - 1.
    """

    index: Tensor
    counts: Tensor


def spread(per_image: Tensor, rows: Rows) -> Tensor:
    """(B, ...) per image to (T, ...) per token."""
    return _Spread.apply(per_image, *rows)


class _Spread(torch.autograd.Function):
    """Row gather whose backward adds each run as a dense sum; the generic scatter-add is several times slower."""

    @staticmethod
    def forward(ctx, per_image: Tensor, index: Tensor, counts: Tensor) -> Tensor:
        ctx.save_for_backward(index, counts)
        return per_image.index_select(0, index)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return sum_images(grad, *ctx.saved_tensors), None, None


@library.custom_op("fitv2::sum_images", mutates_args=())
def sum_images(per_token: Tensor, index: Tensor, counts: Tensor) -> Tensor:
    """(T, ...) to (B, ...): the sum over each image's tokens. An operator of its own, which torch.compile leaves alone:
    its own scatter-add on a CPU is slow, and runs are Python numbers, read from the CPU without waiting for a GPU.
    """
    return _sum_runs(per_token, runs_of(counts.tolist()))


@sum_images.register_fake
def _(per_token: Tensor, index: Tensor, counts: Tensor) -> Tensor:
    # Not len(): as a plain number it would be a constant of the graph, one for every number of images.
    return per_token.new_empty(counts.shape[0], *per_token.shape[1:])


def _keep_rows(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[1:])


def _spread_again(ctx, grad: Tensor):
    return spread(grad, Rows(*ctx.saved_tensors)), None, None


sum_images.register_autograd(_spread_again, setup_context=_keep_rows)


def _sum_runs(per_token: Tensor, runs: list[tuple[int, int]]) -> Tensor:
    parts = per_token.split([images * length for images, length in runs])
    shapes = [(images, length, *per_token.shape[1:]) for images, length in runs]
    return torch.cat([part.reshape(shape).sum(1) for part, shape in zip(parts, shapes, strict=True)])

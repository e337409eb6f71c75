"""Packed tokens: the one representation of a batch of pictures of different sizes.

Shape suffixes used throughout: T packed tokens of a batch, B images, C token channels (c * p * p), D width, N heads,
H head dimension. Token n of an image of h x w patches is the patch in row n // w and column n % w; inside a token the
order is channel, row in patch, column in patch (channel slowest).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenBatch:
    """B images of any sizes, concatenated to one sequence of T tokens; no padding, no mask.

    x: (T, C) float, any device. hw: (B, 2) int64, each image's height and width in patches; kept on the CPU, because
    sizes steer Python (views, loops), and reading them from an accelerator would stall it.
    Raises ValueError when the shapes or counts do not fit.
    """

    x: Tensor
    hw: Tensor

    def __post_init__(self) -> None:
        if self.hw.ndim != 2 or self.hw.shape[1] != 2 or self.hw.dtype != torch.int64:
            raise ValueError(f"hw must be (B, 2) int64, not {tuple(self.hw.shape)} {self.hw.dtype}")
        object.__setattr__(self, "hw", self.hw.cpu())
        if len(self.hw) == 0 or int(self.hw.min()) < 1:
            raise ValueError("a batch needs at least one image, and every side at least one patch")
        if self.x.ndim != 2 or self.x.shape[0] != sum(self.lengths):
            raise ValueError(f"x must be (T, C) with T = {sum(self.lengths)} tokens, not {tuple(self.x.shape)}")

    def __len__(self) -> int:
        return len(self.hw)

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each image in patches."""
        return [(h, w) for h, w in self.hw.tolist()]

    @cached_property
    def lengths(self) -> list[int]:
        """Number of tokens of each image."""
        return self.hw.prod(1).tolist()

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """(images, tokens per image) of each run of neighbouring images of equal length."""
        return [(len(list(run)), length) for length, run in groupby(self.lengths)]

    @cached_property
    def image_index(self) -> Tensor:
        """(T,) int64: the image that each token belongs to."""
        return torch.arange(len(self)).repeat_interleave(self.hw.prod(1)).to(self.x.device)

    @cached_property
    def positions(self) -> Tensor:
        """(T, 2) int64: row and column of each token in its image."""
        lengths = self.hw.prod(1)
        first = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        width = self.hw[:, 1].repeat_interleave(lengths)
        n = torch.arange(int(lengths.sum())) - first
        return torch.stack((n // width, n % width), dim=1).to(self.x.device)

    def with_x(self, x: Tensor) -> TokenBatch:
        """The same images with other token values, (T, any)."""
        batch = TokenBatch(x, self.hw)
        if x.device == self.x.device:  # What derives from hw is kept.
            vars(batch).update({name: value for name, value in vars(self).items() if name not in ("x", "hw")})
        return batch

    def to(self, *args, **kwargs) -> TokenBatch:
        """x on another device or in another dtype, as `Tensor.to`."""
        return TokenBatch(self.x.to(*args, **kwargs), self.hw)

    def select(self, images: Sequence[int]) -> TokenBatch:
        """The images of the given indices, in that order; an index may repeat."""
        parts = self.x.split(self.lengths)
        return TokenBatch(torch.cat([parts[i] for i in images]), self.hw[list(images)])

    def spread(self, per_image: Tensor) -> Tensor:
        """(B, ...) per image to (T, ...) per token."""
        return _Spread.apply(per_image, self.image_index, self.runs)

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
        hw = [[latent.shape[1] // patch_size, latent.shape[2] // patch_size] for latent in latents]
        return cls(torch.cat(tokens), torch.tensor(hw))

    def to_latents(self, patch_size: int) -> list[Tensor]:
        """The inverse of `from_latents`: one (c, height, width) tensor per image."""
        parts = self.x.split(self.lengths)
        return [unpatchify(part, size, patch_size) for part, size in zip(parts, self.sizes, strict=True)]


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


class _Spread(torch.autograd.Function):
    """Row gather whose backward adds each run as a dense sum; the generic scatter-add is several times slower."""

    @staticmethod
    def forward(ctx, per_image: Tensor, image_index: Tensor, runs: list[tuple[int, int]]) -> Tensor:
        ctx.runs = runs
        return per_image.index_select(0, image_index)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _sum_runs(grad, ctx.runs), None, None


def _sum_runs(per_token: Tensor, runs: list[tuple[int, int]]) -> Tensor:
    parts = per_token.split([images * length for images, length in runs])
    shapes = [(images, length, *per_token.shape[1:]) for images, length in runs]
    return torch.cat([part.reshape(shape).sum(1) for part, shape in zip(parts, shapes, strict=True)])

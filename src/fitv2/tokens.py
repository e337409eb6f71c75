"""Packed tokens: the one representation of a batch of images of different sizes.

Shape suffixes used throughout: T packed tokens of a batch, B images, C token channels (c * p * p), D width, N heads,
H head dimension. Token n of an image of h x w patches is the patch in row n // w and column n % w; inside a token the
order is channel, row in patch, column in patch (channel slowest).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from copy import copy
from typing import Any, NamedTuple, TypeVar

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

    sizes: height and width of each image. lengths: its number of tokens. equal_length_runs: (images, tokens per image)
    of each run of neighbouring images of equal length. On the device of x: image_index: (T,) int64, the image that each
    token belongs to. offsets: (B + 1,) int32, the first token of each image, and T. positions: (T, 2) int64, row and
    column of each token in its image. counts: (B,) int64 on the CPU, the lengths.
    """

    def __init__(self, x: Tensor, hw: Tensor | Sequence[tuple[int, int]]) -> None:
        if isinstance(hw, Tensor):
            if hw.ndim != 2 or hw.shape[1] != 2 or hw.dtype != torch.int64:
                raise ValueError(f"hw must be (B, 2) int64, not {tuple(hw.shape)} {hw.dtype}")
            hw = hw.tolist()
        self._set(x, Layout([(h, w) for h, w in hw]))

    def _set(self, x: Tensor, layout: Layout) -> None:
        if x.ndim != 2 or x.shape[0] != sum(layout.lengths):
            raise ValueError(f"x must be (T, C) with T = {sum(layout.lengths)} tokens, not {tuple(x.shape)}")
        if getattr(self, "_layout", None) is not layout or self.x.device != x.device:
            self.image_index, self.offsets, self.positions = layout.on(x.device)
        self.x, self._layout = x, layout

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return self._layout.sizes

    @property
    def lengths(self) -> list[int]:
        return self._layout.lengths

    @property
    def equal_length_runs(self) -> list[tuple[int, int]]:
        return self._layout.equal_length_runs

    @property
    def counts(self) -> Tensor:
        return self._layout.counts

    @property
    def hw(self) -> Tensor:
        """(B, 2) int64 on the CPU: the sizes as a tensor."""
        return torch.tensor(self.sizes)

    @property
    def rows(self) -> Rows:
        """Where in a tensor with a row per image each token finds its image's."""
        return Rows(self.image_index, self.counts, self.offsets)

    def once(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """make(), called once for all batches of the same images on this device. key names all else it depends on."""
        return self._layout.once((key, self.x.device), make)

    def with_x(self, x: Tensor) -> TokenBatch:
        """The same images with other token values, (T, any)."""
        return self._with(x, self._layout)

    def to(self, *args, **kwargs) -> TokenBatch:
        """x on another device or in another dtype, as `Tensor.to`."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        x = self.x if dtype is None else self.x.to(dtype)
        return self.with_x(x if device is None else upload(x, device))

    def select(self, images: Sequence[int]) -> TokenBatch:
        """The images of the given indices, in that order; an index may repeat."""
        parts = self.x.split(self.lengths)
        layout = self._layout.once(("select", *images), lambda: Layout([self.sizes[i] for i in images]))
        return self._with(torch.cat([parts[i] for i in images]), layout)

    def pad_to(self, total: int, longest: int) -> TokenBatch:
        """The same, then images of zeros, each of 1 x `longest` tokens or what is left, that make T the total."""
        whole, rest = divmod(total - len(self.x), longest)
        tail = [(1, longest)] * whole + [(1, rest)] * (rest > 0)
        layout = self._layout.once(("tail", total, longest), lambda: Layout([*self.sizes, *tail]))
        return self._with(F.pad(self.x, (0, 0, 0, total - len(self.x))), layout)

    def _with(self, x: Tensor, layout: Layout) -> TokenBatch:
        batch = copy(self)
        batch._set(x, layout)
        return batch

    def expand_to_tokens(self, per_image: Tensor) -> Tensor:
        """(B, ...) per image to (T, ...) per token."""
        return expand_to_tokens(per_image, self.rows)

    def image_mean(self, per_token: Tensor) -> Tensor:
        """(T, ...) per token to (B, ...): the mean over each image's own tokens."""
        lengths = self.offsets.diff().to(per_token.dtype)
        return segment_sum(per_token, *self.rows) / lengths.view(-1, *[1] * (per_token.ndim - 1))

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


class Layout:
    """What follows from the sizes of a batch's images: made on the CPU, and once for each device that it is used on."""

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        if not sizes or any(h < 1 or w < 1 for h, w in sizes):
            raise ValueError("a batch needs at least one image, and every side at least one patch")
        self.sizes = sizes
        self.lengths = [h * w for h, w in sizes]
        self.equal_length_runs = runs_of(self.lengths)
        self.counts, widths = torch.tensor(self.lengths), torch.tensor([w for _, w in sizes])
        index = torch.arange(len(sizes)).repeat_interleave(self.counts, output_size=sum(self.lengths))
        n = torch.arange(sum(self.lengths)) - (self.counts.cumsum(0) - self.counts)[index]
        offsets = F.pad(self.counts.cumsum(0), (1, 0)).int()
        positions = torch.stack((n // widths[index], n % widths[index]), dim=1)
        self._tensors = index, offsets, positions
        self._made: dict[Hashable, Any] = {}

    def on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """image_index, offsets and positions of `TokenBatch`."""
        if device.type == "cpu":
            return self._tensors
        index, offsets, positions = self._tensors
        return self.once(
            ("tensors", device), lambda: (upload(index, device), upload(offsets, device), upload(positions, device))
        )

    def once(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """make(), called once for the key."""
        if torch.compiler.is_compiling():  # What is traced is part of its graph, and cannot be kept.
            return make()
        key = key, torch.is_inference_mode_enabled()  # Training cannot use a tensor made in inference mode.
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def upload(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on the device; from the memory of the CPU to a GPU without waiting for what the GPU is doing."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


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
    """index: (T,) int64, the row of each token. counts: (B,) int64 on the CPU, the tokens of each row, and offsets:
    (B + 1,) int32, where they begin; gradients need both, and that the index counts up from 0 to B - 1.
    """

    index: Tensor
    counts: Tensor
    offsets: Tensor


def expand_to_tokens(per_image: Tensor, rows: Rows) -> Tensor:
    """(B, ...) per image to (T, ...) per token."""
    return _Spread.apply(per_image, *rows)


class _Spread(torch.autograd.Function):
    """Row gather whose backward adds each image's rows as a dense sum; the generic scatter-add is several times slower,
    and on a GPU adds in another order each time.
    """

    @staticmethod
    def forward(ctx, per_image: Tensor, index: Tensor, counts: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(index, counts, offsets)
        return per_image.index_select(0, index)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return segment_sum(grad, *ctx.saved_tensors), None, None, None


@library.custom_op("fitv2::segment_sum", mutates_args=())
def segment_sum(per_token: Tensor, index: Tensor, counts: Tensor, offsets: Tensor) -> Tensor:
    """(T, ...) to (B, ...): the sum over each image's tokens. An operator of its own, which torch.compile leaves alone:
    its own scatter-add on a CPU is slow.
    """
    if per_token.device.type == "cpu":
        return _sum_runs(per_token, runs_of(counts.tolist()))
    return sum_segments(per_token, offsets)


@segment_sum.register_fake
def _(per_token: Tensor, index: Tensor, counts: Tensor, offsets: Tensor) -> Tensor:
    # Not len(): as a plain number it would be a constant of the graph, one for every number of images.
    return per_token.new_empty(counts.shape[0], *per_token.shape[1:])


def _keep_rows(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[1:])


def _expand_again(ctx, grad: Tensor):
    return expand_to_tokens(grad, Rows(*ctx.saved_tensors)), None, None, None


segment_sum.register_autograd(_expand_again, setup_context=_keep_rows)


def _sum_runs(per_token: Tensor, runs: list[tuple[int, int]]) -> Tensor:
    """A dense sum for each run of images of equal length: fastest on a CPU, where starting one costs nothing."""
    parts = per_token.split([images * length for images, length in runs])
    shapes = [(images, length, *per_token.shape[1:]) for images, length in runs]
    return torch.cat([part.reshape(shape).sum(1) for part, shape in zip(parts, shapes, strict=True)])


def sum_segments(per_token: Tensor, offsets: Tensor) -> Tensor:
    """One kernel for all images, whatever their lengths; unsafe leaves out a check that would wait for the device."""
    full = per_token.to(torch.promote_types(per_token.dtype, torch.float32)).contiguous()
    return torch.segment_reduce(full, "sum", offsets=offsets, unsafe=True).to(per_token.dtype)

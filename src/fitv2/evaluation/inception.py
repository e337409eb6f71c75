"""Inception v3 as the Frechet inception distance uses it: TensorFlow's graph of 2015-12-05 with PyTorch's names.

Weights come from a local file, `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid, torch-fidelity's file of the same
numbers, or these tensors as safetensors. The architecture equals torch-fidelity's on random weights
(tests/test_extractors.py); it has not run with the true weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 299
# Numbers of pooled and of spatial features. ADM's evaluator takes 7 channels of mixed_6/conv, which has 17 x 17 places.
POOLED, SPATIAL = 2048, 17 * 17 * 7
CLASSES = 1008
# TensorFlow does not count the padding.
MEAN = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
MAXIMUM = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
HALVING = partial(F.max_pool2d, kernel_size=3, stride=2)
# A layer of a path is (channels, kernel) or (channels, kernel, stride); a path may end in two parallel layers.
Layer = Any
FORK: Layer = {"a": (384, (1, 3)), "b": (384, (3, 1))}
Pooling = Callable[[Tensor], Tensor]


class Convolution(nn.Module):
    """Convolution, normalisation and ReLU, padded to keep the size unless the stride is 2 or `padded` is False."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, padded: bool = True
    ) -> None:
        super().__init__()
        padding = "same" if stride == 1 and padded else 0
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Parallel paths, whose channels are concatenated; the last one is a pooling, and a convolution if `pooled` is.

    Layers of a path are numbered from 1 if it has several.
    """

    def __init__(self, inputs: int, paths: dict[str, list[Layer]], pooling: Pooling, pooled: int | None = None) -> None:
        super().__init__()
        self.pooling = pooling
        self.paths: list[list[list[str]]] = []  # Of each path its steps, each of them the names of parallel layers.
        for path, layers in paths.items():
            channels, steps = inputs, []
            for number, layer in enumerate(layers, 1):
                name = f"{path}_{number}" if len(layers) > 1 else path
                parallel = {name + end: one for end, one in (FORK if layer is FORK else {"": layer}).items()}
                for own, shape in parallel.items():
                    self.add_module(own, Convolution(channels, *shape))
                channels = sum(shape[0] for shape in parallel.values())
                steps.append(list(parallel))
            self.paths.append(steps)
        self.branch_pool = nn.Identity() if pooled is None else Convolution(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        results = []
        for path in self.paths:
            y = x
            for step in path:
                y = torch.cat([self.get_submodule(name)(y) for name in step], 1)
            results.append(y)
        return torch.cat([*results, self.branch_pool(self.pooling(x))], 1)


def mixed_5(inputs: int, pooled: int) -> Mixed:
    """Returns a block of the 35 x 35 grid; pooled: channels of its pooling branch."""
    paths = {"branch1x1": [(64, 1)], "branch5x5": [(48, 1), (64, 5)], "branch3x3dbl": [(64, 1), (96, 3), (96, 3)]}
    return Mixed(inputs, paths, MEAN, pooled)


def mixed_6(c: int) -> Mixed:
    """Returns a block of the 17 x 17 grid; c: channels of its factored 7 x 7 convolutions."""
    once = [(c, 1), (c, (1, 7)), (192, (7, 1))]
    twice = [(c, 1), (c, (7, 1)), (c, (1, 7)), (c, (7, 1)), (192, (1, 7))]
    return Mixed(768, {"branch1x1": [(192, 1)], "branch7x7": once, "branch7x7dbl": twice}, MEAN, 192)


def mixed_7(inputs: int, pooling: Pooling) -> Mixed:
    """Returns a block of the 8 x 8 grid."""
    paths = {"branch1x1": [(320, 1)], "branch3x3": [(384, 1), FORK], "branch3x3dbl": [(448, 1), (384, 3), FORK]}
    return Mixed(inputs, paths, pooling, 192)


class InceptionV3(nn.Module):
    """Maps (B, 3, 299, 299) in [-1, 1] to pool_3 (B, 2048), mixed_6/conv (B, 192, 17, 17) and logits (B, 1008).

    The logits have no bias, as in the Inception Score.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, padded=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = mixed_5(192, 32), mixed_5(256, 64), mixed_5(288, 64)
        double = [(64, 1), (96, 3), (96, 3, 2)]
        self.Mixed_6a = Mixed(288, {"branch3x3": [(384, 3, 2)], "branch3x3dbl": double}, HALVING)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = map(mixed_6, (128, 160, 160, 192))
        seven = [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)]
        self.Mixed_7a = Mixed(768, {"branch3x3": [(192, 1), (320, 3, 2)], "branch7x7x3": seven}, HALVING)
        # The pooling of the last block is an accident of that graph, and part of the measure.
        self.Mixed_7b, self.Mixed_7c = mixed_7(1280, MEAN), mixed_7(2048, MAXIMUM)
        self.fc = nn.Linear(2048, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        spatial = self.Mixed_6d.get_submodule("branch1x1")(x)  # TensorFlow's mixed_6/conv.
        x = self.Mixed_7a(self.Mixed_6e(self.Mixed_6d(x)))
        pooled = self.Mixed_7c(self.Mixed_7b(x)).mean((2, 3))
        return pooled, spatial, pooled @ self.fc.weight.T


def resize_like_tensorflow(images: Tensor, side: int) -> Tensor:
    """Resizes (B, C, H, W) to (B, C, side, side), bilinear with pixel 0 on pixel 0, as TensorFlow 1 does by default."""
    for axis in (3, 2):
        length = images.shape[axis]
        place = torch.arange(side, device=images.device) * (length / side)
        low = place.long()
        weight = (place - low).view(-1, *[1] * (3 - axis))
        first = images.index_select(axis, low)
        images = first + (images.index_select(axis, (low + 1).clamp(max=length - 1)) - first) * weight
    return images

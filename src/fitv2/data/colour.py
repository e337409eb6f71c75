"""Colours to sRGB, by the ICC profile of a file. Files without a profile are taken as sRGB, as on the web."""

from __future__ import annotations

import io
import logging
from functools import lru_cache
from typing import Any, cast

import numpy as np
from PIL import Image, ImageCms

logger = logging.getLogger(__name__)

# A profile counts as sRGB, of which many versions circulate, up to this difference in values of 0 to 255.
_SAME = 2


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Converts mode L, RGB or CMYK to RGB or grey (mode L) in sRGB, by the ICC profile of the file."""
    mode, transform = _transform(profile) if profile else (None, None)
    if (image.mode, mode) == ("L", "RGB"):
        image = image.convert("RGB")
    if image.mode == mode and transform is not None:
        return _transformed(image, transform)
    return image.convert("RGB") if image.mode == "CMYK" else image


def _transformed(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    return cast(Image.Image, ImageCms.applyTransform(image, transform))  # None only in place.


@lru_cache(maxsize=64)
def _transform(profile: bytes) -> tuple[str | None, ImageCms.ImageCmsTransform | None]:
    """Returns the pixel mode that a profile is for, and the transform to sRGB if it changes anything visible.

    A profile that cannot be used is ignored, with a warning.
    """
    try:
        opened: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}[opened.profile.xcolor_space]
        intent, flags = ImageCms.Intent.PERCEPTUAL, ImageCms.Flags.BLACKPOINTCOMPENSATION
        transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB", intent, flags)
    except Exception as error:  # OSError, TypeError, ValueError, KeyError and others.
        logger.warning("a colour profile of %d bytes cannot be used and is ignored: %s", len(profile), error)
        return None, None
    if mode == "CMYK":
        return mode, transform
    levels = np.linspace(0, 255, 9 if mode == "RGB" else 256).round().astype(np.uint8)
    probe = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(27, 27, 3) if mode == "RGB" else levels[None]
    before = Image.fromarray(probe)
    after = np.asarray(_transformed(before, transform)).astype(int)
    return mode, None if abs(after - np.asarray(before.convert("RGB"))).max() <= _SAME else transform

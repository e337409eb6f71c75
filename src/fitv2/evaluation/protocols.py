"""What of a picture is compared, where samples are of one size and real pictures are not.

adm-square: real pictures as they are; both sides are resized as the extractor does: Inception and EfficientNet stretch
them to their square, the network of the garments keeps the aspect. With ADM's files the protocol of the papers, where a
wide sample is squeezed and meets square crops.
matched: real pictures scaled to cover the size of the samples and cut to it; then the same resizing for both.
centre: both sides cut to their central square, which shows how the middle looks, and misses the borders.
"""

from __future__ import annotations

from typing import Literal

from PIL import Image

Protocol = Literal["adm-square", "matched", "centre"]
FILTER = "antialiased bicubic"


def real_view(image: Image.Image, protocol: Protocol, size: tuple[int, int] | None) -> Image.Image:
    """A real picture as it is compared with samples of that (height, width) in pixels; None: of many sizes."""
    if protocol == "adm-square":
        return image
    if protocol == "matched":
        return cover(image, size)
    return central_square(image) if size is None else cover(image, (min(size), min(size)))


def sample_view(image: Image.Image, protocol: Protocol) -> Image.Image:
    return central_square(image) if protocol == "centre" else image


def cover(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scaled, up or down, to cover (height, width), aspect kept, and the centre of that; bicubic, antialiased."""
    height, width = size
    scale = max(height / image.height, width / image.width)
    # Resampling only what remains gives the same pixels, without the whole scaled picture in memory.
    left, top = (image.width - width / scale) / 2, (image.height - height / scale) / 2
    box = (max(left, 0), max(top, 0), min(image.width - left, image.width), min(image.height - top, image.height))
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


def central_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))

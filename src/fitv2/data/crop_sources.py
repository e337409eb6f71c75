"""The images that an autoencoder is trained on, by the names of their sources."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from . import emoji
from .canvases import Canvases
from .contents import listed_contents
from .dataset import Dataset
from .folder import ImageFolder
from .official import is_official
from .prepared import is_prepared
from .tables import LISTS

# Canvases of drawings have at most the pixels of a square of this side: the bundled drawings have sides up to 128.
EMOJI_RESOLUTION = 256


def open_crop_source(name: str, resolution: int, min_scale: float, patch: int, cache_file: Path) -> Dataset:
    """Returns the images of a source: a folder, a list of files, emoji (bundled) or emoji:FOLDER, without classes.

    Args:
        name: Of the source.
        resolution: Larger images are scaled down to the number of pixels of a square of this side.
        min_scale: Each epoch scales an image by a number from this to 1.
        patch: Sides are multiples of this number of pixels.
        cache_file: Where the sizes of a folder's images are kept.

    Raises:
        UserError: The source is not there, holds no images, or something else.
    """
    if emoji.is_emoji(name):
        tokens = (min(resolution, EMOJI_RESOLUTION) // patch) ** 2
        return Canvases(emoji.cutouts(emoji.read_named(name)), tokens, patch, min_scale=min_scale)
    path = Path(name)
    if not path.exists():
        raise UserError(f"there is no {name}: --data takes a folder of images, a list of image files, or emoji")
    if path.is_dir() and (is_prepared(path) or is_official(path)):
        raise UserError(f"{name} holds prepared data: give the folder of the images themselves")
    if path.is_file() and path.suffix.lower() not in LISTS:
        raise UserError(f"{name} is neither a folder of images nor a list of image files ({', '.join(LISTS)})")
    listed = listed_contents(path) if path.is_file() else None
    return ImageFolder(
        path if listed is None else path.parent,
        (resolution // patch) ** 2,
        patch,
        preprocessing="resize",
        min_scale=min_scale,
        cache_file=cache_file,
        labels_from="none",
        contents=listed,
    )

"""An image of the user's to begin with: laid on the canvas of the request, varied, redrawn in parts, or extended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..data.decode import Mode, decode
from ..data.preprocessing import to_array, to_tensor
from ..errors import UserError
from ..messages import check_known
from ..sampling.editing import Start
from ..sampling.editing_defaults import ANCHORS, VARIATION
from .autoencoder import LatentCodec, Pixels

# In a mask, values from here on are redrawn.
WHITE = 128


@dataclass(frozen=True, eq=False)
class Edit:
    """An image in the size of its request.

    Attributes:
        pixels: (1 or 3, H, W) in [-1, 1].
        kept: (H, W) bool, the pixels that stay exactly as they are; None if all may change.
        strength: Above 0 to 1, how much of the image changes: sampling begins at the time 1 - strength.
    """

    pixels: Tensor
    kept: Tensor | None
    strength: float

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[1], self.pixels.shape[2]

    def start(self, codec: Pixels | LatentCodec) -> Start:
        """Returns it in latents. A latent pixel is kept if all of its pixels are."""
        mean, _ = codec.encode(self.pixels[None])
        kept = self.kept
        if kept is not None:
            kept = F.max_pool2d((~kept)[None].float(), codec.factor)[0] == 0
        return Start(mean[0], 1 - self.strength, kept)

    def finish(self, image: Tensor) -> Tensor:
        """Returns an image (1 or 3, H, W) with the kept pixels as they were, which decoding changes a little."""
        return image if self.kept is None else torch.where(self.kept, self.pixels, image)


def starts_of(edits: Sequence[Edit], codec: Pixels | LatentCodec) -> list[Start]:
    """Returns the edits in latents; an image that several requests begin with is encoded once."""
    starts = {id(edit): edit.start(codec) for edit in {id(edit): edit for edit in edits}.values()}
    return [starts[id(edit)] for edit in edits]


def lay_out(
    image: Image.Image,
    channels: int,
    unit: int,
    size: tuple[int, int] | None = None,
    mask: Image.Image | None = None,
    strength: float | None = None,
    anchor: str = "center",
) -> Edit:
    """Lays an image on a canvas. What lies beyond it is made new (outpainting), as are the white parts of a mask.

    Args:
        image: Any image; transparent parts count as white.
        channels: 1 for grey, 3 for colour.
        unit: What divides the sides of a canvas: the pixels of a patch.
        size: (height, width) of the canvas, at least as large as the image. None is that of the image, whose edges are
            cut to a multiple of the unit.
        mask: An image of the same size, white where it is to be redrawn.
        strength: How much of the image changes, above 0 to 1; by default 0.6, and 1 with a mask or room around the
            image.
        anchor: The position of the image on the canvas.

    Raises:
        UserError: Sizes that do not fit, or a strength or anchor that is not known.
    """
    check_known("anchor", anchor, ANCHORS)
    colours, masked = flat(image, channels), None if mask is None else flat(mask, 1)
    if mask is not None and mask.size != image.size:
        ours, theirs = (f"{one.height}x{one.width}" for one in (image, mask))
        raise UserError(f"the mask is {theirs} and the image {ours}: give a mask of the same size")
    pixels = to_array(colours)
    redrawn = np.zeros((image.height, image.width), bool) if masked is None else np.asarray(masked) >= WHITE
    if size is None:
        cut = [(side - side // unit * unit) for side in (image.height, image.width)]
        if min(image.height, image.width) < unit:
            raise UserError(f"an image of {image.height}x{image.width} is smaller than a patch of {unit}: enlarge it")
        top, left = (rest // 2 for rest in cut)
        area = slice(top, image.height - cut[0] + top), slice(left, image.width - cut[1] + left)
        pixels, redrawn = pixels[:, *area], redrawn[area]
    else:
        room = [side - own for side, own in zip(size, (image.height, image.width), strict=True)]
        if min(room) < 0:
            raise UserError(
                f"{size[0]}x{size[1]} is smaller than the image, {image.height}x{image.width}: resize the image, or "
                "ask for a larger size"
            )
        before = place(room[0], anchor, "top", "bottom"), place(room[1], anchor, "left", "right")
        borders = [(first, whole - first) for first, whole in zip(before, room, strict=True)]
        pixels = np.pad(pixels, [(0, 0), *borders], mode="edge")
        redrawn = np.pad(redrawn, borders, constant_values=True)
    if mask is not None and not redrawn.any():
        raise UserError("no part of the mask is white, so nothing would change: paint white what is to be redrawn")
    if strength is None:
        strength = 1.0 if redrawn.any() else VARIATION
    if not 0 < strength <= 1:
        raise UserError(f"the strength {strength:g} must be above 0 and at most 1")
    return Edit(to_tensor(pixels), torch.from_numpy(~redrawn) if redrawn.any() else None, strength)


def place(room: int, anchor: str, first: str, last: str) -> int:
    """Returns the room before an image on one axis."""
    return 0 if anchor == first else room if anchor == last else room // 2


def flat(image: Image.Image, channels: int) -> Image.Image:
    """Returns an image in grey or colour, its transparent parts white."""
    mode: Mode = "L" if channels == 1 else "RGB"
    if not isinstance(image, Image.Image):
        raise UserError(f"an image to begin with is an image of Pillow, not {type(image).__name__}")
    if image.mode in ("L", "RGB"):
        return image.convert(mode)
    content = BytesIO()
    try:  # Transparency, palettes and 16 bits, as in the files of a data set.
        image.save(content, "PNG")
        return decode(content, mode)
    except (OSError, ValueError) as error:
        raise UserError(f"an image of mode {image.mode} cannot be used: {error}") from None

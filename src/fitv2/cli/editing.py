"""The options of `fitv2 sample` for images that begin with an image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UserError
from ..hashes import file_digest
from .options import parse_size

if TYPE_CHECKING:
    from PIL import Image

    from ..autoencoder import LatentCodec, Pixels
    from ..checkpoints.model_folder import Pretrained
    from ..edits import Edit


class Edits(NamedTuple):
    """The options as they are given, see `fitv2.edits.lay_out`."""

    init_image: Path | None
    mask: Path | None
    strength: float | None
    anchor: str

    def request(self) -> dict[str, Any]:
        """Returns what samples.json says of them: the files by their content, because another may take their place."""
        files = {"init_image": self.init_image, "mask": self.mask}
        digests = {name: path and file_digest(path) for name, path in files.items()}
        return digests | {"strength": self.strength, "anchor": self.anchor}

    def lay_out(self, sizes: list[str] | None, pretrained: Pretrained, codec: Pixels | LatentCodec) -> dict[str, Edit]:
        """Returns, by size, the image on a canvas of that size, by default its own; empty without an image.

        Raises UserError for an image that cannot be read or does not fit, and for options without one.
        """
        from ..edits import lay_out

        if self.init_image is None:
            if self.mask is not None or self.strength is not None or self.anchor != "center":
                raise UserError("--mask, --strength and --anchor are about an image to begin with: give --init-image")
            return {}
        channels = 3 if codec.channels else pretrained.model.config.in_channels
        image, mask = read(self.init_image, channels), None if self.mask is None else read(self.mask, 1)
        about: dict[str, Any] = {"mask": mask, "strength": self.strength, "anchor": self.anchor}
        unit = codec.factor * pretrained.model.config.patch_size
        wanted = [None if size is None else parse_size(size) for size in sizes or [None]]
        edits = [lay_out(image, channels, unit, size, **about) for size in wanted]
        return {"x".join(map(str, edit.size)): edit for edit in edits}


def read(path: Path, channels: int) -> Image.Image:
    """Returns the image in a file. Raises UserError if there is none."""
    from ..data.decode import decode
    from ..data.formats import UnreadableImage

    try:
        return decode(path, "L" if channels == 1 else "RGB")
    except UnreadableImage as error:
        raise UserError(f"{path}: {error}") from None

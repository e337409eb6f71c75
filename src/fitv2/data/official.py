"""The latents of ImageNet as the authors publish them, read as they are: a safetensors file per image and variant.

    from_16_to_N/             images within the budget of N tokens
    greater_than_N_resize/    larger ones, resized
    greater_than_N_crop/      centre crops of those whose sides both exceed that of the budget's square
    less_than_16/             images too small for a token, left out as in the authors' training

Each file holds `feature` (2, h, w, 16): channel-major 2 x 2 patches of a drawn and scaled SD-VAE latent, of the image
and of its mirror image; `size` (2,): h, w; `label` (1,); and `grid` (2, h * w), which the size implies.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UserError
from ..tokens import unpatchify
from .dataset import Dataset
from .formats import UnreadableImage
from .preprocessing import Preprocessing
from .scan import ScanReport, check_all

logger = logging.getLogger(__name__)

FOLDER = re.compile(r"from_16_to_(\d+)|greater_than_(\d+)_(?:resize|crop)")
NUMBERS_PER_TOKEN = 16


class OfficialLatents(Dataset):
    """The authors' folders below `root` for one budget, in the order of the files' names.

    Args:
        class_names: Of the labels in the files.
        max_tokens: Which budget, where `root` has several.
        preprocessing: "mixed" draws the resized or the cropped version each epoch where there are both.
        flip: Whether each epoch takes the mirror image with probability 1/2.
        cache_file: Where to keep sizes and labels between starts.

    `names` are the readable files relative to the root: of each image the resized version before the cropped one.
    Raises UserError if there is none, or no such budget.
    """

    patch_size, channels = 2, 4
    autoencoder, factor = "stabilityai/sd-vae-ft-ema", 8

    def __init__(
        self,
        root: str | Path,
        class_names: Sequence[str],
        *,
        max_tokens: int | None = None,
        preprocessing: Preprocessing = "mixed",
        flip: bool = True,
        cache_file: Path | None = None,
    ) -> None:
        self.root, self.flip = Path(root), flip
        self.class_names, self.num_classes = list(class_names), len(class_names)
        possible = budgets(self.root)
        if max_tokens not in possible and (max_tokens is not None or len(possible) != 1):
            told = ", ".join(map(str, possible)) or "no"
            raise UserError(f"{root} holds latents for budgets of {told} tokens: set data.max_tokens")
        found = files_of(self.root, max_tokens or possible[0], preprocessing)
        names = [name for versions in found for name in versions]
        facts, reasons = check_all(self.root, names, partial(check, classes=self.num_classes), 3, cache_file)
        self.report = ScanReport(str(root), len(names), len(facts), [(names[i], why) for i, why in reasons.items()])
        logger.log(logging.WARNING if reasons else logging.INFO, self.report.summary())
        if not len(facts):
            raise UserError(f"no latent in {root} can be read: download the files again")
        self.names = [name for i, name in enumerate(names) if i not in reasons]
        # One version that can be read is enough.
        image = np.delete(np.repeat(np.arange(len(found)), [*map(len, found)]), [*reasons])
        _, first, self.possible = np.unique(image, return_index=True, return_counts=True)
        # (N, 2) places in `names`. Random numbers below 1/2 have always meant the last version: it comes first.
        self.place = np.stack((first + self.possible - 1, first), 1)
        self.labels, self.variant_hw = facts[first, 2], facts[self.place, :2]

    def load(self, index: int, variant: int, hw: tuple[int, int], flip: bool, rng: object) -> Tensor:
        name = self.names[self.place[index, variant]]
        try:
            with safe_open(self.root / name, "pt") as file:
                feature = file.get_slice("feature")[int(flip)]
        except (OSError, SafetensorError, IndexError) as error:
            raise UnreadableImage(f"{name} could be read at the start and now cannot: {error}") from error
        if not feature.isfinite().all():
            raise UnreadableImage(f"{name} holds numbers that are not finite (NaN or infinity)")
        if tuple(feature.shape) != (*hw, NUMBERS_PER_TOKEN):
            raise UnreadableImage(f"{name} was {hw} tokens at the start and now is {tuple(feature.shape[:2])}")
        return unpatchify(feature.float().flatten(0, 1), hw, self.patch_size)

    def identity(self) -> tuple[list[str], list[np.ndarray], Path]:
        return self.names, [self.labels, self.variant_hw[:, ::-1]], self.root


def budgets(root: Path) -> list[int]:
    """Returns the token budgets that the authors' folders below `root` are of; empty for any other folder."""
    folders = [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    return sorted({int(match[1] or match[2]) for match in map(FOLDER.fullmatch, (p.name for p in folders)) if match})


def is_official(root: Path) -> bool:
    """Whether a folder holds the latents as the authors publish them."""
    return bool(budgets(root))


def files_of(root: Path, max_tokens: int, preprocessing: Preprocessing) -> list[list[str]]:
    """Returns the files of each image, relative to the root: its one version, or the resized and the cropped one.

    An image that lacks the version of `preprocessing` has the other one.
    """
    large = f"greater_than_{max_tokens}"
    small, resized, crops = (
        sorted(path.name for path in (root / folder).glob("*.safetensors"))
        for folder in (f"from_16_to_{max_tokens}", f"{large}_resize", f"{large}_crop")
    )
    of_folder = {f"{large}_resize": set(resized), f"{large}_crop": set(crops)}
    names = sorted({*resized, *crops})
    both = [[f"{folder}/{name}" for folder, there in of_folder.items() if name in there] for name in names]
    if preprocessing != "mixed":
        both = [versions[:1] if preprocessing == "resize" else versions[-1:] for versions in both]
    return [[f"from_16_to_{max_tokens}/{name}"] for name in small] + both


def check(path: Path, classes: int) -> list[int] | str:
    """Returns [h, w, label] of a file, or why it cannot be used."""
    try:
        with safe_open(path, "pt") as file:
            shape = file.get_slice("feature").get_shape()
            size, label = file.get_tensor("size").flatten().tolist(), int(file.get_tensor("label").flatten()[0])
    except (OSError, SafetensorError, IndexError) as error:
        return f"truncated or damaged: {error}"
    if shape != [2, *size, NUMBERS_PER_TOKEN]:
        return f"of another layout: feature {shape}, size {size}"
    return [*size, label] if 0 <= label < classes else f"unknown class: label {label} of {classes} classes"

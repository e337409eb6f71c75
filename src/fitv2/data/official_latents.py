"""The latents of ImageNet as the authors publish them, read as they are: a safetensors file per picture and variant.

    from_16_to_N/             pictures within the budget of N tokens
    greater_than_N_resize/    larger ones, resized
    greater_than_N_crop/      centre crops of those whose sides both exceed that of the budget's square
    less_than_16/             pictures too small for a token, left out as in the authors' training

Each file holds `feature` (2, h, w, 16): channel-major 2 x 2 patches of a drawn and scaled SD-VAE latent, of the picture
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
from .folder import ScanReport
from .images import Preprocessing, UnreadableImage
from .scan import check_all

logger = logging.getLogger(__name__)

FOLDER = re.compile(r"from_16_to_(\d+)|greater_than_(\d+)_(?:resize|crop)")
NUMBERS_PER_TOKEN = 16
# Keeps the stream of these draws apart from that of the packs.
_DRAWS = 1


class OfficialLatents:
    """The authors' folders below `root` for one budget, in the order of the files' names, as a `Dataset`.

    max_tokens: which budget, where `root` has several. preprocessing: "mixed" draws the resized or the cropped version
    each epoch where there are both. flip: each epoch takes the mirror image with probability 1/2. cache_file: where to
    keep sizes and labels between starts. Raises ValueError when there is no readable file.
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
        self.max_tokens = chosen_budget(self.root, max_tokens)
        found = files_of(self.root, self.max_tokens, preprocessing)
        names = [name for versions in found for name in versions]
        sizes = check_all(self.root, names, partial(check, classes=self.num_classes), cache_file)
        skipped = [(name, reason) for name, reason in sizes.items() if isinstance(reason, str)]
        self.report = ScanReport(str(root), len(names), len(names) - len(skipped), skipped)
        logger.log(logging.WARNING if skipped else logging.INFO, self.report.summary())
        # One version that can be read is enough.
        readable = [[name for name in versions if not isinstance(sizes[name], str)] for versions in found]
        self.versions = [versions for versions in readable if versions]
        if not self.versions:
            raise UserError(f"no latent can be read: download the files again\n{self.report.summary()}")
        self.labels = np.array([sizes[versions[0]][2] for versions in self.versions], np.int64)
        # A picture with one version has it twice: drawing needs no cases.
        self.sizes = np.array([[sizes[v[0]][:2], sizes[v[-1]][:2]] for v in self.versions], np.int64)

    def __len__(self) -> int:
        return len(self.versions)

    def epoch(self, epoch: int, seed: int) -> OfficialEpoch:
        """The pictures as one epoch takes them; what is drawn for picture i depends on (seed, epoch, i) alone."""
        return OfficialEpoch(self, np.random.default_rng((seed, epoch, _DRAWS)).random((len(self), 2)))


class OfficialEpoch:
    """An `EpochView` of the authors' latents. draws: (N, 2) in [0, 1), for variant and flip."""

    def __init__(self, latents: OfficialLatents, draws: np.ndarray) -> None:
        self.latents, self.labels = latents, latents.labels
        self.variant = (draws[:, 0] < 0.5).astype(np.int64)
        self.flip = latents.flip & (draws[:, 1] < 0.5)
        self.hw = latents.sizes[np.arange(len(latents)), self.variant]

    def latent(self, index: int) -> Tensor:
        """(4, 2 h, 2 w) float32; raises UnreadableImage if the file changed since the scan."""
        name = self.latents.versions[index][-int(self.variant[index])]
        size = tuple(self.hw[index].tolist())
        try:
            with safe_open(self.latents.root / name, "pt") as file:
                feature = file.get_slice("feature")[int(self.flip[index])]
        except (OSError, SafetensorError, IndexError) as error:
            raise UnreadableImage(f"{name} could be read at the start and now cannot: {error}") from error
        if not feature.isfinite().all():
            raise UnreadableImage(f"{name} holds numbers that are not finite (NaN or infinity)")
        if tuple(feature.shape) != (*size, NUMBERS_PER_TOKEN):
            raise UnreadableImage(f"{name} was {size} tokens at the start and now is {tuple(feature.shape[:2])}")
        return unpatchify(feature.float().flatten(0, 1), size, self.latents.patch_size)


def budgets(root: Path) -> list[int]:
    """The token budgets that the authors' folders below `root` are of; empty for any other folder."""
    folders = [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    return sorted({int(match[1] or match[2]) for match in map(FOLDER.fullmatch, (p.name for p in folders)) if match})


def chosen_budget(root: Path, max_tokens: int | None) -> int:
    found = budgets(root)
    if max_tokens is None and len(found) == 1:
        return found[0]
    if max_tokens not in found:
        raise UserError(
            f"{root} holds latents for budgets of {', '.join(map(str, found)) or 'no'} tokens: set data.max_tokens"
        )
    return max_tokens


def files_of(root: Path, max_tokens: int, preprocessing: Preprocessing) -> list[list[str]]:
    """The files of each picture, relative to the root: its one version, or the resized and the cropped one."""

    def listed(folder: str) -> list[str]:
        return sorted(path.name for path in (root / folder).glob("*.safetensors"))

    small, resized, cropped = (
        f"from_16_to_{max_tokens}",
        *(f"greater_than_{max_tokens}_{v}" for v in ("resize", "crop")),
    )
    crops = set(listed(cropped))
    both = [[f"{resized}/{name}"] + [f"{cropped}/{name}"] * (name in crops) for name in listed(resized)]
    if preprocessing != "mixed":
        both = [versions[:1] if preprocessing == "resize" else versions[-1:] for versions in both]
    return [[f"{small}/{name}"] for name in listed(small)] + both


def check(path: Path, classes: int) -> list[int] | str:
    """[h, w, label] of a file, or why it cannot be used."""
    try:
        with safe_open(path, "pt") as file:
            shape = file.get_slice("feature").get_shape()
            size, label = file.get_tensor("size").flatten().tolist(), int(file.get_tensor("label").flatten()[0])
    except (OSError, SafetensorError, IndexError) as error:
        return f"truncated or damaged: {error}"
    if shape != [2, *size, NUMBERS_PER_TOKEN]:
        return f"of another layout: feature {shape}, size {size}"
    return [*size, label] if 0 <= label < classes else f"unknown class: label {label} of {classes} classes"

"""Sampling that begins with an image instead of noise: variations, inpainting and outpainting, and enlargement.

On the rectified path, an image at time t0 is (1 - t0) noise + t0 image: the noise hides its details, and sampling from
there makes others (SDEdit, arXiv 2108.01073). What is kept moves along its own straight path from noise to image, with
the velocity image - noise; so it ends as it was, and at each time the network sees it with the noise of that time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..flow.path import interpolate
from ..tokens import TokenBatch, upload
from .solver_names import EDITING_SOLVERS
from .spec import SampleSpec, Sampling
from .windows import Guided


@dataclass(frozen=True, eq=False)
class Start:
    """The image that a sampling begins with.

    Attributes:
        latent: (c, height, width), the image in the latents of the model.
        time: Where sampling begins, from 0, pure noise, to below 1, where nothing would change.
        kept: (height, width) bool, the latent pixels that do not change; None if all may.
    """

    latent: Tensor
    time: float
    kept: Tensor | None = None


def check_solver(sampling: Sampling) -> None:
    """Raises UserError for a solver that cannot begin with an image."""
    if sampling.solver not in EDITING_SOLVERS:
        raise UserError(
            f"the solver {sampling.solver} cannot begin with an image; choose from {', '.join(EDITING_SOLVERS)}, which "
            "need a model that predicts a velocity"
        )


def check_starts(starts: Sequence[Start], specs: Sequence[SampleSpec], sampling: Sampling) -> None:
    """Raises UserError for starts that do not fit their requests, or a solver that cannot begin with an image."""
    check_solver(sampling)
    if len(starts) != len(specs):
        raise UserError(f"{len(starts)} images to begin with for {len(specs)} requests: give one each")
    for start, spec in zip(starts, specs, strict=True):
        if not 0 <= start.time < 1:
            raise UserError(f"sampling begins at a time from 0 to below 1, not at {start.time:g}")
        if tuple(start.latent.shape[1:]) != tuple(spec.size):
            height, width = start.latent.shape[1:]
            raise UserError(
                f"an image of {height}x{width} latent pixels and a request of {spec.size[0]}x{spec.size[1]}: give an "
                "image of that size"
            )


class Editing:
    """The starts of the images of one packed batch.

    Args:
        model: The guided model of the batch.
        starts: One per image.
        noise: (T, C) on the device of the model.
    """

    def __init__(self, model: Guided, starts: Sequence[Start], noise: Tensor) -> None:
        patch, self.model = model.config.patch_size, model
        data = TokenBatch.from_latents([start.latent for start in starts], patch).x
        kept = TokenBatch.from_latents([_kept(start) for start in starts], patch).x
        self.noise, self.data = noise, upload(data.float(), model.device)
        self.straight = self.data - noise
        self.kept = upload(kept, model.device) if bool(kept.any()) else None
        self.times_B = torch.tensor([start.time for start in starts], dtype=torch.float64)

    def begin(self) -> Tensor:
        """Returns the noisy images (T, C) at their times."""
        return interpolate(self.data, self.noise, self.model.expand(self.times_B.float()))

    def velocity(self, x: Tensor, t: Tensor, target: Tensor | None = None) -> Tensor:
        """Returns the velocity of the guided model, and where the image is kept, that of the straight path to it."""
        v = self.model(x, t, target)
        return v if self.kept is None else torch.where(self.kept, self.straight, v)

    def finish(self, x: Tensor) -> Tensor:
        """Returns the images without the rounding errors of what is kept."""
        return x if self.kept is None else torch.where(self.kept, self.data, x)

    def grid(self, times: Tensor) -> Tensor:
        """Returns the times of a grid from 0 to 1, (N + 1,) or (N + 1, B), rescaled to begin at each start."""
        alike = len(set(self.times_B.tolist())) == 1
        start = self.times_B[0] if alike else self.times_B
        times = times[:, None] if times.ndim < 2 and not alike else times
        return (start + (1 - start) * times.double()).float()


def _kept(start: Start) -> Tensor:
    """Returns the kept numbers of a latent (c, height, width)."""
    if start.kept is None:
        return torch.zeros(start.latent.shape, dtype=torch.bool)
    return start.kept.expand(start.latent.shape)


def enlarged(latent: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns a latent (c, height, width) in another size, by bicubic interpolation."""
    return F.interpolate(latent[None], size, mode="bicubic", align_corners=False)[0]

"""The one source of randomness: every generator comes from a key, (purpose, numbers), and from nothing else.

Equal keys give equal numbers on any number of processes and machines; keys that differ in anything give independent
ones. torch's CPU generator takes only the low 32 bits of a seed, so a key is hashed to 32 bits and never added up.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

# Rises when the same key gives other numbers than before; checkpoints carry it.
VERSION = 2


class Purpose(IntEnum):
    """What random numbers are for. The values are part of the keys: never reuse or change one."""

    WEIGHTS = 1  # (seed): initial weights
    ORDER = 2  # (seed, epoch): the shuffle of an epoch
    VARIANTS = 3  # (seed, epoch): crop, flip and scale of each image
    LATENTS = 4  # (seed, epoch, image): the latent drawn from its moments
    TRAINING = 5  # (seed, step, pack): times, noise and dropped labels
    IMAGE = 6  # (seed): an image's noise in sampling, for seeds of more than 32 bits
    REQUESTS = 7  # (seed, ...): which classes and sizes are sampled
    SPLITS = 8  # (seed, ...): subsets of features and of real images


def seed_of(purpose: Purpose, *key: int) -> int:
    """32 bits that depend on every number of the key (0 <= number < 2**64)."""
    return int(_sequence(purpose, key).generate_state(1, np.uint32)[0])


def numpy_generator(purpose: Purpose, *key: int) -> np.random.Generator:
    return np.random.default_rng(_sequence(purpose, key))


def torch_generator(purpose: Purpose, *key: int) -> torch.Generator:
    """On the CPU, so that devices draw the same numbers."""
    import torch  # Loading it takes a second that not every user of keys has to wait.

    return torch.Generator().manual_seed(seed_of(purpose, *key))


def _sequence(purpose: Purpose, key: tuple[int, ...]) -> np.random.SeedSequence:
    # Two words a number, so that no number runs into the next; SeedSequence itself does not see trailing zeros.
    words = [word for number in key for word in divmod(number, 2**32)]
    return np.random.SeedSequence([len(key), purpose, *words])

"""The one source of randomness: every generator comes from a key, (purpose, numbers), and from nothing else.

Equal keys give equal numbers on any number of processes and machines; keys that differ in anything give independent
ones. torch's CPU generator keeps only 32 bits of a seed, in which a quarter of 50 000 draws would meet one of their
kind: a key fills its whole state instead.
"""

from __future__ import annotations

from enum import IntEnum
from operator import index
from typing import TYPE_CHECKING

import numpy as np

from .errors import UserError

if TYPE_CHECKING:
    import torch

# Rises when the same key gives other numbers than before; checkpoints carry it.
VERSION = 2
# Seeds below this give the images that they always gave.
PLAIN_SEEDS = 2**32
LARGEST_SEED = 2**64 - 1


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
    MEASURING = 9  # (seed): inputs of benchmarks and profiles


def seed_of(purpose: Purpose, *key: int) -> int:
    """32 bits that depend on every number of the key, for torch's global generators, which take no more."""
    return int(_sequence(purpose, key).generate_state(1, np.uint32)[0])


def numpy_generator(purpose: Purpose, *key: int) -> np.random.Generator:
    """A generator for the key. Raises UserError for a number that is not whole, or not from 0 to 2**64 - 1."""
    return np.random.default_rng(_sequence(purpose, key))


def torch_generator(purpose: Purpose, *key: int) -> torch.Generator:
    """On the CPU, so that all devices get the same numbers. Raises UserError as `numpy_generator`."""
    import torch  # Loading it takes a second that not every user of keys has to wait.

    generator = torch.Generator()
    state = generator.get_state()
    # Of a generator that has drawn nothing, the first three words count, and the 624 of the Mersenne Twister follow.
    words = np.random.MT19937(_sequence(purpose, key)).state["state"]["key"]
    state.view(torch.int64)[3:627] = torch.from_numpy(words.astype(np.int64))
    generator.set_state(state)
    return generator


def image_generator(seed: int) -> torch.Generator:
    """The noise of the image of that seed. Raises UserError as `check_seed`."""
    import torch

    if check_seed(seed) >= PLAIN_SEEDS:
        return torch_generator(Purpose.IMAGE, seed)
    return torch.Generator().manual_seed(index(seed))


def check_seed(seed: int) -> int:
    """The seed as a plain number. Raises UserError for one that is not whole, or not from 0 to 2**64 - 1."""
    try:
        number = index(seed)
    except TypeError:
        raise UserError(f"{seed!r} is not a seed: give a whole number") from None
    if not 0 <= number <= LARGEST_SEED:
        raise UserError(f"{number} is not a seed: give a whole number from 0 to 2**64 - 1")
    return number


def _sequence(purpose: Purpose, key: tuple[int, ...]) -> np.random.SeedSequence:
    # Two words a number, so that no number runs into the next; SeedSequence itself does not see trailing zeros.
    words = [word for number in key for word in divmod(check_seed(number), 2**32)]
    return np.random.SeedSequence([len(key), purpose, *words])

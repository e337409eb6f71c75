"""The one source of randomness: every generator is derived from a key, (purpose, numbers), and from nothing else.

Equal keys give equal numbers on any number of processes and machines; different keys give independent numbers. torch's
CPU generator uses only 32 bits of a seed, so that among 50 000 drawn seeds two are equal with a probability of a
quarter. A key fills the generator's whole state instead.
"""

from __future__ import annotations

from enum import IntEnum
from operator import index
from typing import TYPE_CHECKING

import numpy as np

from .errors import UserError

if TYPE_CHECKING:
    import torch

# Increased when the same key gives other numbers than before; stored in checkpoints.
VERSION = 2
# Seeds below this give the same images as in all earlier versions.
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
    HOLDOUT = 10  # (): which images are held out; (image, use): the noise that is added to them
    CANVAS = 11  # (seed, epoch, image): what lies on a canvas, and where
    CAPTIONS = 12  # (seed, epoch, image): which of several captions
    CROPS = 13  # (seed, epoch, crop): where a crop of an image lies


def seed_of(purpose: Purpose, *key: int) -> int:
    """A seed of 32 bits that depends on every number of the key, for torch's global generators, which use no more."""
    return int(_sequence(purpose, key).generate_state(1, np.uint32)[0])


def numpy_generator(purpose: Purpose, *key: int) -> np.random.Generator:
    """The generator of a key. Raises UserError for a number that is not a whole one from 0 to 2**64 - 1."""
    return np.random.default_rng(_sequence(purpose, key))


def torch_generator(purpose: Purpose, *key: int) -> torch.Generator:
    """The generator of a key, on the CPU: all devices get the same numbers. Raises UserError like `numpy_generator`."""
    import torch  # Takes a second to load, which not every caller needs.

    generator = torch.Generator()
    state = generator.get_state()
    # The state: three words of bookkeeping, as in a generator that has drawn nothing, then the Mersenne Twister's 624.
    words = np.random.MT19937(_sequence(purpose, key)).state["state"]["key"]
    state.view(torch.int64)[3:627] = torch.from_numpy(words.astype(np.int64))
    generator.set_state(state)
    return generator


def image_generator(seed: int) -> torch.Generator:
    """The generator of the noise of the image with that seed. Raises UserError like `check_seed`."""
    import torch

    if check_seed(seed) >= PLAIN_SEEDS:
        return torch_generator(Purpose.IMAGE, seed)
    return torch.Generator().manual_seed(index(seed))


def check_seed(seed: int) -> int:
    """The seed as a plain int. Raises UserError if it is not a whole number from 0 to 2**64 - 1."""
    try:
        number = index(seed)
    except TypeError:
        raise UserError(f"{seed!r} is not a seed: give a whole number") from None
    if not 0 <= number <= LARGEST_SEED:
        raise UserError(f"{number} is not a seed: give a whole number from 0 to 2**64 - 1")
    return number


def _sequence(purpose: Purpose, key: tuple[int, ...]) -> np.random.SeedSequence:
    # Two words per number, so that numbers cannot run into each other; SeedSequence itself ignores trailing zeros.
    words = [word for number in key for word in divmod(check_seed(number), 2**32)]
    return np.random.SeedSequence([len(key), purpose, *words])

"""Random numbers follow from keys: of keys that differ in anything no draws are alike, whoever makes them."""

from itertools import product

import numpy as np
import pytest
import torch

from fitv2.errors import UserError
from fitv2.randomness import Purpose, image_generator, numpy_generator, seed_of, torch_generator
from fitv2.sampling.noise import ImageNoise
from tiny import trainer

BAD_SEEDS = (-1, 2**64, 1.5, "5", None)


def keys():
    yield from product(Purpose, (0, 1, 2, 2**23, 2**32, 2**32 + 1, 2**40), range(4), range(3))
    yield from ((purpose, seed) for purpose in Purpose for seed in range(3))
    yield from ((Purpose.TRAINING, *start, 0) for start in ((), (0,), (1,)))


def test_keys_that_differ_in_anything_draw_other_numbers():
    for make in (
        lambda *key: torch.rand(2, generator=torch_generator(*key)).tolist(),
        lambda *key: numpy_generator(*key).random(2).tolist(),
        lambda *key: [seed_of(*key)],
    ):
        draws = [tuple(make(*key)) for key in dict.fromkeys(keys())]
        assert len(set(draws)) == len(draws)
        assert make(Purpose.TRAINING, 5, 6, 7) == make(Purpose.TRAINING, 5, 6, 7)


def test_the_state_of_torchs_generator_is_the_twister_of_the_key():
    """Its layout is torch's own affair: should it change, this fails."""
    words = np.random.MT19937(np.random.SeedSequence([2, Purpose.WEIGHTS, 0, 7, 1, 0]))
    words.state = words.state | {"state": words.state["state"] | {"pos": 624}}
    expected = (words.random_raw(1000) % 2**24) / 2**24
    assert torch.rand(1000, generator=torch_generator(Purpose.WEIGHTS, 7, 2**32)).tolist() == expected.tolist()
    made = torch.randn(100_000, generator=torch_generator(Purpose.WEIGHTS, 7))
    assert abs(float(made.mean())) < 0.02 and float(made.std()) == pytest.approx(1, abs=0.01)


def test_seeds_of_images():
    """Below 2**32 they give torch's own stream of that seed, as they always did; above, streams of their own."""
    for seed in (0, 5, 2**32 - 1):
        expected = torch.randn(3, 2, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(ImageNoise([seed], [3], 2).draw(), expected)
    draws = [
        torch.rand(2, generator=image_generator(seed + 2**power)) for seed in range(4) for power in (3, 32, 33, 62)
    ]
    assert len({tuple(draw.tolist()) for draw in draws}) == len(draws)
    assert torch.equal(ImageNoise([np.int64(2**40)], [3], 2).draw(), ImageNoise([2**40], [3], 2).draw())


@pytest.mark.parametrize("seed", BAD_SEEDS)
def test_invalid_seeds_are_refused(seed):
    for use in (
        image_generator,
        lambda seed: numpy_generator(Purpose.ORDER, 0, seed),
        lambda seed: ImageNoise([seed], [3], 2),
    ):
        with pytest.raises(UserError, match="is not a seed"):
            use(seed)


def test_packs_of_a_training_share_no_randomness_on_any_number_of_processes(tmp_path):
    """Seeds, steps and packs differ in every draw, also from images of the first seeds; processes change nothing."""

    def draws(seed: int, world: int = 1) -> dict[tuple[int, int], tuple[float, ...]]:
        run = trainer(tmp_path, "training.batches_per_step=4", f"training.seed={seed}")
        run.loader.world, found = world, {}
        for run.progress.done, run.loader.rank, number in product(range(5), range(world), range(4 // world)):
            pack = number * world + run.loader.rank
            found[run.progress.done, pack] = tuple(torch.randn(3, generator=run.pack_generator(number)).tolist())
        return found

    alone = [draws(seed) for seed in (0, 1, 2**32 - 1)]
    assert draws(0, 2) == draws(0, 4) == alone[0] and len(alone[0]) == 20
    images = [tuple(ImageNoise([seed], [3], 1).draw().flatten().tolist()) for seed in range(100)]
    everything = [*images, *(draw for found in alone for draw in found.values())]
    assert len(set(everything)) == 160


def test_the_seed_reaches_weights_and_the_order_of_the_images(tmp_path):
    runs = [trainer(tmp_path, f"training.seed={seed}") for seed in (0, 1, 2**31)]
    weights = {float(run.learner.model.module.blocks[0].attn.qkv.weight[0, 0].detach()) for run in runs}
    orders = {tuple(np.concatenate(run.loader._plan(0)[1]).tolist()) for run in runs}
    assert len(weights) == len(orders) == 3

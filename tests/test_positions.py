"""Rows and columns spread over a range."""

import torch

from fitv2 import TokenBatch
from fitv2.positions import even, even_positions, random_positions

SIZES = [(2, 5), (1, 1), (8, 3), (12, 2)]
BATCH = TokenBatch(torch.zeros(sum(h * w for h, w in SIZES), 0), SIZES)
RANGE = 8


def test_drawn_positions_are_in_order_without_repetition_and_within_the_range():
    generator = torch.Generator().manual_seed(0)
    drawn = [random_positions(BATCH, RANGE, generator) for _ in range(2000)]
    for (rows, columns), places in zip(SIZES, drawn[0].split(BATCH.lengths), strict=True):
        grid = places.view(rows, columns, 2)
        assert (grid[..., 0] == grid[:, :1, 0]).all() and (grid[..., 1] == grid[:1, :, 1]).all()
        assert (grid[1:, 0, 0] > grid[:-1, 0, 0]).all() and (grid[0, 1:, 1] > grid[0, :-1, 1]).all()
        assert grid.min() > -1 and grid.max() < RANGE
    # In sampling every position is where the draws are on average.
    torch.testing.assert_close(torch.stack(drawn).mean(0), even_positions(BATCH, RANGE), atol=0.15, rtol=0)


def test_positions_of_all_sides():
    assert even(RANGE, RANGE).tolist() == list(range(RANGE))
    assert even(1, RANGE).tolist() == [(RANGE - 1) / 2]
    longer = even(40, RANGE)
    assert longer.min() > -1 and longer.max() < RANGE and (longer.diff() > 0).all()


def test_equal_generators_draw_equal_positions():
    one, other = (random_positions(BATCH, RANGE, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one, other)

"""RoPE and its forms for larger images: the authors' tables, and what each form promises; positions over a range."""

from typing import get_args

import pytest
import torch

from fitv2 import FiTConfig, RopeScheme, TokenBatch
from fitv2.checkpoints.official import CUSTOM_FREQS
from fitv2.model.config import EXTRAPOLATIONS, RopeMethod
from fitv2.model.rope import attention_factor, image_frequencies, rotation_table
from fitv2.positions import even, even_positions, random_positions
from golden_fixtures import assert_matches, load
from tiny import random_model

HEAD_DIM = 16
LENGTHS = [4, 8, 12, 16, 24, 32, 64]


def outputs(name: str, *endings: str) -> list[str]:
    return sorted(key.removeprefix("out.") for key in load(name) if key.startswith("out.") and key.endswith(endings))


def scheme_of(freqs: str, layout: str, **changes) -> RopeScheme:
    method, attention = CUSTOM_FREQS[freqs]
    return RopeScheme(
        method=method, attention=attention, per_axis=layout == "decoupled", **{"train_side": 8, **changes}
    )


def table_of(hw: list[list[int]], scheme: RopeScheme, head_dim: int = HEAD_DIM):
    batch = TokenBatch(torch.zeros(sum(h * w for h, w in hw), 1), torch.tensor(hw))
    return rotation_table(batch.positions, batch.image_index, batch.hw, head_dim, scheme)


@pytest.mark.parametrize("output", outputs("f04", ".cos"))
def test_tables_of_one_size(output):
    freqs, layout, size, _ = output.split(".")
    hw = [[int(side) for side in size.split("x")]]
    scheme = scheme_of(freqs, layout)
    for name, half in zip(("cos", "sin"), table_of(hw, scheme), strict=True):
        # The reference stores each number twice, once for each of a pair.
        assert_matches("f04", f"{freqs}.{layout}.{size}.{name}", half[:, 0].repeat_interleave(2, 1))
    rows_and_columns = image_frequencies(torch.tensor(hw), HEAD_DIM // 2, scheme)[0]
    for name, frequencies in zip(("freqs_h", "freqs_w"), rows_and_columns, strict=True):
        assert_matches("f04", f"{freqs}.{layout}.{size}.{name}", frequencies)
    if (magnitude := f"{freqs}.{layout}.{size}.magnitude") in outputs("f04", ".magnitude"):
        factor = attention_factor(torch.tensor(hw).double(), scheme.attention, 8)
        assert_matches("f04", magnitude, factor.sqrt().float())


@pytest.mark.parametrize("output", [output for output in outputs("f04", "") if output.startswith("freqs1d")])
def test_frequencies_of_one_axis(output):
    _, freqs, head_dim, trained, *theta = output.split(".")
    changes = {"theta": float(theta[0].removeprefix("theta"))} if theta else {}
    scheme = scheme_of(freqs, "decoupled", train_side=int(trained.removeprefix("ori")), **changes)
    sizes = torch.tensor([[length, length] for length in LENGTHS])
    assert_matches("f04", output, image_frequencies(sizes, int(head_dim.removeprefix("hd")) // 2, scheme)[:, 0])


@pytest.mark.parametrize("trained", [8, 16, 32])
def test_attention_factors(trained):
    sizes = torch.tensor([LENGTHS, LENGTHS[2:] + LENGTHS[:2]]).T.double()
    roots = [attention_factor(sizes, name, trained).sqrt().float() for name in ("yarn", "pro1", "pro2")]
    assert_matches("f04", f"magnitude.ori{trained}", torch.stack(roots))


@pytest.mark.parametrize("output", outputs("f05", ".cos"))
def test_tables_of_many_sizes_at_once(output):
    freqs, layout, _ = output.split(".")
    hw = load("f05")["in.size"][:, 0].tolist()
    for name, half in zip(("cos", "sin"), table_of(hw, scheme_of(freqs, layout)), strict=True):
        assert_matches("f05", f"{freqs}.{layout}.{name}", half[:, 0].repeat_interleave(2, 1))


def test_the_papers_attention_factor():
    """Eq. 15: log 400 / log 256 at 320x320, and none at or below the training size."""
    factors = attention_factor(torch.tensor([[20.0, 20.0], [16.0, 16.0], [8.0, 30.0]]).double(), "paper", 16)
    assert factors.tolist() == pytest.approx([1.0804, 1, 1], abs=1e-4)


@pytest.mark.parametrize("method", get_args(RopeMethod))
def test_at_the_training_size_every_method_is_plain_rope(method):
    hw = [[8, 8], [3, 7]]
    plain, scaled = (table_of(hw, RopeScheme(method=name, train_side=8), 64) for name in ("none", method))
    torch.testing.assert_close(scaled, plain)


@pytest.mark.parametrize("name", EXTRAPOLATIONS)
def test_vision_forms_scale_each_axis_by_its_own_ratio(name):
    scheme = RopeScheme(train_side=8).named(name)
    rows, columns = image_frequencies(torch.tensor([[8, 24]]), 32, scheme)[0]
    plain = image_frequencies(torch.tensor([[8, 8]]), 32, RopeScheme())[0, 0]
    assert torch.allclose(rows, plain) == (name.startswith("vision") or name == "none")
    assert torch.allclose(columns, plain) == (name == "none")


def test_a_batch_mixes_sizes_that_need_different_frequencies():
    config = FiTConfig(width=32, depth=2, heads=2, num_classes=3, rope=RopeScheme(train_side=3))
    model = random_model(config)
    hw = torch.tensor([[2, 3], [9, 4], [3, 12]])
    batch = TokenBatch(torch.randn(int(hw.prod(1).sum()), 16), hw)
    t, y = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 1, 2])
    rope = config.rope.named("vision-ntk", attention="paper")
    with torch.no_grad():
        together, plain = model(batch, t, y, rope=rope), model(batch, t, y)
        alone = [model(batch.select([i]), t[i : i + 1], y[i : i + 1], rope=rope) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    # The small image lies within the training size: nothing changes for it. The others do change.
    changed = [
        (a - b).abs().max() > 1e-3 for a, b in zip(together.split([6, 36, 36]), plain.split([6, 36, 36]), strict=True)
    ]
    assert changed == [False, True, True]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"method": "linear"}, "there is no RoPE method 'linear'; choose from none, interpolation"),
        ({"attention": "pro3"}, "there is no attention scale 'pro3'"),
        ({"train_side": 1}, "train_side 1"),
        ({"target": (0, 4)}, "must be patches per side"),
        ({"theta": 1.0}, "theta 1.0 must be more than 1"),
    ],
)
def test_impossible_schemes_are_refused(fields, complaint):
    with pytest.raises(ValueError, match=complaint):
        RopeScheme(**fields)
    with pytest.raises(ValueError, match="'ntk-pro'"):
        RopeScheme().named("ntk-pro")


# Rows and columns spread over a range

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

"""TokenBatch: packing and unpacking keep every number in its place."""

import pytest
import torch

from fitv2 import TokenBatch, tokens


def batch_of(*sizes: tuple[int, int], channels: int = 4) -> TokenBatch:
    tokens = sum(h * w for h, w in sizes)
    return TokenBatch(torch.arange(tokens * channels).reshape(tokens, channels).float(), torch.tensor(sizes))


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_latents_survive_the_round_trip(patch_size):
    latents = [torch.randn(3, h * patch_size, w * patch_size) for h, w in ((2, 3), (5, 1), (1, 7))]
    batch = TokenBatch.from_latents(latents, patch_size)
    assert batch.sizes == [(2, 3), (5, 1), (1, 7)]
    assert all(torch.equal(a, b) for a, b in zip(latents, batch.to_latents(patch_size), strict=True))


def test_token_order_is_row_then_column_and_channel_slowest():
    latent = torch.arange(2 * 4 * 6).reshape(2, 4, 6).float()
    batch = TokenBatch.from_latents([latent], 2)
    assert batch.positions.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert batch.x[4].tolist() == latent[:, 2:4, 2:4].flatten().tolist()


def test_sizes_give_lengths_runs_and_positions():
    batch = batch_of((2, 3), (3, 2), (1, 1))
    assert batch.lengths == [6, 6, 1] and batch.equal_length_runs == [(2, 6), (1, 1)]
    assert batch.image_index.tolist() == [0] * 6 + [1] * 6 + [2]
    wide, tall = torch.cartesian_prod(*map(torch.arange, (2, 3))), torch.cartesian_prod(*map(torch.arange, (3, 2)))
    assert torch.equal(batch.positions, torch.cat((wide, tall, torch.zeros(1, 2, dtype=torch.int64))))


def test_select_reorders_and_repeats_whole_images():
    batch = batch_of((2, 3), (1, 2))
    chosen = batch.select([1, 0, 1])
    assert chosen.sizes == [(1, 2), (2, 3), (1, 2)]
    assert torch.equal(chosen.x, torch.cat((batch.x[6:], batch.x[:6], batch.x[6:])))


def test_expand_to_tokens_and_image_mean_with_gradients():
    batch = batch_of((2, 2), (1, 3), (3, 1))
    per_image = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.equal(batch.expand_to_tokens(per_image), per_image[batch.image_index])
    assert torch.autograd.gradcheck(batch.expand_to_tokens, per_image)
    assert torch.autograd.gradgradcheck(batch.expand_to_tokens, per_image)
    per_token = torch.randn(10, 5, dtype=torch.float64)
    expected = torch.stack([part.mean(0) for part in per_token.split(batch.lengths)])
    assert torch.allclose(batch.image_mean(per_token), expected)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_sums_over_images(shape):
    """One image is last and of one token, and two neighbours are of equal length."""
    batch = batch_of((2, 2), (1, 3), (3, 2), (6, 1), (1, 1))
    per_token = torch.randn(len(batch.x), *shape, dtype=torch.float64)
    expected = torch.stack([per_token[batch.image_index == image].sum(0) for image in range(5)])
    torch.testing.assert_close(tokens.segment_sum(per_token, *batch.row_of_token), expected)
    # What a GPU does, in one kernel.
    torch.testing.assert_close(tokens.sum_segments(per_token, batch.offsets), expected)


@pytest.mark.parametrize(
    ("x", "hw", "message"),
    [
        (torch.zeros(5, 4), torch.tensor([[2, 3]]), "T = 6 tokens"),
        (torch.zeros(6, 4), torch.tensor([[2.0, 3.0]]), "int64"),
        (torch.zeros(6, 4), torch.tensor([2, 3]), "int64"),
        (torch.zeros(0, 4), torch.tensor([[0, 3]]), "at least one patch"),
        (torch.zeros(0, 4), torch.zeros(0, 2, dtype=torch.int64), "at least one image"),
    ],
)
def test_sizes_and_tokens_that_do_not_fit_are_refused(x, hw, message):
    with pytest.raises(ValueError, match=message):
        TokenBatch(x, hw)


def test_a_latent_that_is_not_divisible_is_refused():
    with pytest.raises(ValueError, match=r"5x4 .*2x2"):
        TokenBatch.from_latents([torch.zeros(1, 5, 4)], 2)

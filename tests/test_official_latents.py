"""The authors' published latents: files as their writer makes them, read as a data set."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fitv2.build import build_dataset
from fitv2.classes import imagenet_names
from fitv2.data.formats import UnreadableImage
from fitv2.data.official import OfficialLatents, budgets
from fitv2.settings.read import build_recipe
from fitv2.tokens import TokenBatch

LARGEST = 64


def latent_of(seed: int, h: int, w: int) -> torch.Tensor:
    """(4, 2 h, 2 w) half."""
    return torch.randn(4, 2 * h, 2 * w, generator=torch.Generator().manual_seed(seed)).half()


def patches(latent: torch.Tensor) -> torch.Tensor:
    """(4, 2 h, 2 w) to (h, w, 16): the numbers of a token in the order channel, row, column."""
    squares = latent.unfold(1, 2, 2).unfold(2, 2, 2)  # (4, h, w, 2, 2)
    return squares.permute(1, 2, 0, 3, 4).flatten(2)


def write(path, seed: int, h: int, w: int, label: int) -> None:
    """A file as published: grid row 0 counts columns, row 1 rows; the second feature is of the mirror image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns, rows = torch.meshgrid(torch.arange(w), torch.arange(h), indexing="xy")
    feature = torch.stack([patches(latent_of(seed, h, w)), patches(latent_of(seed + 1000, h, w))])
    content = {
        "feature": feature,
        "grid": torch.stack([columns.reshape(-1), rows.reshape(-1)]).half(),
        "size": torch.tensor([h, w], dtype=torch.int32),
        "label": torch.tensor([label]),
    }
    save_file(content, path)


@pytest.fixture
def root(tmp_path):
    large = f"greater_than_{LARGEST}"
    write(tmp_path / f"from_16_to_{LARGEST}/n01_1.safetensors", 1, 3, 5, 7)
    write(tmp_path / f"from_16_to_{LARGEST}/n01_2.safetensors", 2, 8, 8, 0)
    write(tmp_path / f"{large}_resize/n02_1.safetensors", 3, 6, 10, 999)
    write(tmp_path / f"{large}_crop/n02_1.safetensors", 4, 8, 8, 999)
    write(tmp_path / f"{large}_resize/n02_2.safetensors", 5, 4, 16, 42)
    write(tmp_path / f"{large}_crop/n02_9.safetensors", 6, 8, 8, 43)
    write(tmp_path / "less_than_16/n03_1.safetensors", 7, 1, 1, 3)
    return tmp_path


def open_latents(root, **options) -> OfficialLatents:
    return OfficialLatents(root, imagenet_names(), **options)


def test_sizes_labels_and_what_is_left_out(root):
    data = open_latents(root, preprocessing="resize")
    view = data.epoch(0, 0)
    # The last image has a crop alone.
    assert view.hw.tolist() == [[3, 5], [8, 8], [6, 10], [4, 16], [8, 8]]
    assert view.labels.tolist() == [7, 0, 999, 42, 43]
    assert (data.num_classes, data.patch_size, data.channels, data.factor) == (1000, 2, 4, 8)
    assert data.autoencoder == "stabilityai/sd-vae-ft-ema" and budgets(root) == [LARGEST]
    cropped = open_latents(root, preprocessing="crop").epoch(0, 0)
    assert cropped.hw.tolist() == [[3, 5], [8, 8], [8, 8], [4, 16], [8, 8]]


def test_latents_come_back_and_as_tokens_equal_the_features(root):
    data = open_latents(root)
    seeds = [[1], [2], [4, 3], [5], [6]]
    seen = set()
    for epoch in range(40):
        view = data.epoch(epoch, seed=0)
        for i in range(5):
            seed, flip = seeds[i][view.variant[i]], bool(view.flip[i])
            h, w = view.hw[i].tolist()
            latent = view.load(i)
            # Index 0 or 1 of a feature is one of two flips; which is which does not matter to a fair coin.
            assert torch.equal(latent, latent_of(seed + 1000 * flip, h, w).float())
            expected = patches(latent_of(seed + 1000 * flip, h, w)).float().flatten(0, 1)
            assert torch.equal(TokenBatch.from_latents([latent], 2).x, expected)
            seen.add((i, seed, flip))
    assert len(seen) == 12


def test_bad_files_are_named_and_one_version_is_enough(root):
    crop = root / f"greater_than_{LARGEST}_crop/n02_1.safetensors"
    crop.write_bytes(crop.read_bytes()[:300])
    write(root / f"from_16_to_{LARGEST}/n09_1.safetensors", 9, 3, 3, 1000)
    save_file({"moments": torch.zeros(3)}, root / f"from_16_to_{LARGEST}/n09_2.safetensors")
    data = open_latents(root)
    assert len(data) == 5 and data.epoch(1, 0).hw[2].tolist() == [6, 10]
    reasons = {name.rpartition("/")[2]: reason.partition(":")[0] for name, reason in data.report.skipped}
    assert reasons == {
        "n02_1.safetensors": "truncated or damaged",
        "n09_1.safetensors": "unknown class",
        "n09_2.safetensors": "truncated or damaged",
    }
    view = data.epoch(0, 0)
    (root / data.names[data.place[0, 0]]).unlink()
    with pytest.raises(UnreadableImage, match=r"n01_1\.safetensors"):
        view.load(0)


def test_a_cache_saves_the_second_scan(root, tmp_path, monkeypatch):
    first = open_latents(root, cache_file=tmp_path / "cache.json")
    monkeypatch.setattr("fitv2.data.official.check", lambda path, classes: pytest.fail(f"{path} was read"))
    second = open_latents(root, cache_file=tmp_path / "cache.json")
    assert np.array_equal(first.variant_hw, second.variant_hw) and np.array_equal(first.labels, second.labels)


def test_a_recipe_takes_the_authors_folder(root):
    recipe = build_recipe({"data": {"source": str(root)}}, [])
    data = build_dataset(recipe.data, 2)
    assert isinstance(data, OfficialLatents) and data.class_names[0] == imagenet_names()[0]
    with pytest.raises(ValueError, match=r"set model\.patch_size=2"):
        build_dataset(recipe.data, 4)
    with pytest.raises(ValueError, match="of 64 tokens"):
        build_dataset(build_recipe({"data": {"source": str(root), "max_tokens": 256}}, []).data, 2)
    write(root / "from_16_to_1024/n01_1.safetensors", 1, 30, 30, 7)
    with pytest.raises(ValueError, match="64, 1024 tokens"):
        build_dataset(recipe.data, 2)
    large = build_dataset(build_recipe({"data": {"source": str(root), "max_tokens": 1024}}, []).data, 2)
    assert large.epoch(0, 0).hw.tolist() == [[30, 30]]


def test_numbers_that_are_not_finite_are_refused(root):
    path = root / f"from_16_to_{LARGEST}/n01_1.safetensors"
    content = load_file(path)
    content["feature"][:, 0, 0, 0] = torch.nan
    save_file(content, path)
    data = open_latents(root, max_tokens=LARGEST)
    index = next(i for i, place in enumerate(data.place) if "n01_1" in data.names[place[0]])
    with pytest.raises(UnreadableImage, match="not finite"):
        data.epoch(0, 0).load(index)

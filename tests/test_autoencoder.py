"""KL autoencoders: tiles for large pictures, folders, and what is not there."""

import pytest
import torch

from fitv2.autoencoder import KLAutoencoder, load_autoencoder, read_factor
from tiny import tiny_autoencoder


def test_large_pictures_are_decoded_in_tiles(monkeypatch):
    vae = tiny_autoencoder()
    latent = torch.randn(4, 9, 12, generator=torch.Generator().manual_seed(0))
    whole = KLAutoencoder(vae, "cpu").decode(latent)
    monkeypatch.setattr("fitv2.autoencoder.LARGEST_UNTILED", 32 * 32)
    tiled = KLAutoencoder(vae, "cpu").decode(latent)
    assert tiled.shape == whole.shape == (3, 72, 96) and not torch.equal(tiled, whole) and not vae.use_tiling
    monkeypatch.undo()
    assert torch.equal(KLAutoencoder(vae, "cpu").decode(latent), whole)


def test_an_autoencoder_by_folder_and_one_that_is_not_there(tmp_path):
    vae = tiny_autoencoder()
    vae.save_pretrained(tmp_path / "pipeline" / "vae")
    vae.save_pretrained(tmp_path / "alone")
    latent = torch.randn(4, 4, 4)
    for name in ("pipeline", "alone"):
        assert torch.equal(
            load_autoencoder(str(tmp_path / name)).decode(latent), KLAutoencoder(vae, "cpu").decode(latent)
        )
        assert read_factor(str(tmp_path / name)) == KLAutoencoder(vae, "cpu").factor == 8
    assert load_autoencoder(None).decode(latent) is latent and read_factor(None) == 1
    for read in (load_autoencoder, read_factor):
        with pytest.raises(ValueError, match=r"the autoencoder .*nowhere cannot be loaded; name its folder instead"):
            read(str(tmp_path / "nowhere"))


def test_encoding_undoes_scaling_and_shift_and_takes_tiles_for_large_pictures(monkeypatch):
    vae = tiny_autoencoder()
    codec = KLAutoencoder(vae, "cpu")
    pictures = torch.rand(2, 3, 48, 72, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = codec.encode(pictures)
    with torch.no_grad():
        raw = vae.encode(pictures).latent_dist
        expected = vae.decode(raw.mean).sample
    assert mean.shape == std.shape == (2, 4, 6, 9)
    assert torch.allclose(mean, (raw.mean - 0.1) * 0.5, atol=1e-6) and torch.allclose(std, raw.std * 0.5)
    assert torch.allclose(torch.stack([codec.decode(latent) for latent in mean]), expected, atol=1e-4)
    monkeypatch.setattr("fitv2.autoencoder.LARGEST_UNTILED", 32 * 32)
    tiled, _ = codec.encode(pictures)
    assert tiled.shape == mean.shape and not torch.equal(tiled, mean) and not vae.use_tiling
    pixels, none = load_autoencoder(None).encode(pictures)
    assert torch.equal(pixels, pictures) and not none.any()


def test_the_digest_is_of_weights_and_configuration_not_of_the_place(tmp_path):
    vae = tiny_autoencoder()
    vae.save_pretrained(tmp_path / "one")
    vae.save_pretrained(tmp_path / "other")
    digest = KLAutoencoder(vae, "cpu").digest()
    assert load_autoencoder(str(tmp_path / "one")).digest() == load_autoencoder(str(tmp_path / "other")).digest()
    assert load_autoencoder(str(tmp_path / "one")).digest() == digest
    vae.encoder.conv_in.weight.data[0, 0, 0, 0] += 1e-3
    assert KLAutoencoder(vae, "cpu").digest() != digest
    other = tiny_autoencoder()
    other.register_to_config(scaling_factor=0.25)
    assert KLAutoencoder(other, "cpu").digest() not in (digest, KLAutoencoder(vae, "cpu").digest())

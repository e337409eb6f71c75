"""KL autoencoders: tiles for large pictures, folders, and what is not there."""

import pytest
import torch

from fitv2.autoencoder import KLAutoencoder, load_autoencoder
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
    assert load_autoencoder(None).decode(latent) is latent
    with pytest.raises(ValueError, match=r"the autoencoder .*nowhere cannot be loaded; name its folder instead"):
        load_autoencoder(str(tmp_path / "nowhere"))

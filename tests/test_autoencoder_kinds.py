"""Autoencoders of others as small random networks of diffusers' own classes: SD3's, FLUX's, DC-AE, whitened ones."""

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL

from fitv2.errors import UserError
from fitv2.images.autoencoder import LatentCodec, load_autoencoder, read_factor
from fitv2.prepare.encode import build_encoder
from tiny import small_blocks

WITHOUT_QUANT = {"use_quant_conv": False, "use_post_quant_conv": False}
# Scale and shift as published with each.
SD3 = {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609, **WITHOUT_QUANT}
FLUX = {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159, **WITHOUT_QUANT}
WHITENED = {
    "latent_channels": 4,
    "scaling_factor": 0.5,
    "latents_mean": (0.1, -0.2, 0.3, 0),
    "latents_std": (1, 2, 3, 4),
}


def deep_compression() -> AutoencoderDC:
    """A deterministic autoencoder of 32 channels at 1/32, as DC-AE is."""
    torch.manual_seed(0)
    sides = {f"{side}_block_out_channels": (8,) * 6 for side in ("encoder", "decoder")}
    sides |= {f"{side}_layers_per_block": (1,) * 6 for side in ("encoder", "decoder")}
    sides |= {f"{side}_qkv_multiscales": ((),) * 6 for side in ("encoder", "decoder")}
    shortcuts = {"encoder_out_shortcut": False, "decoder_in_shortcut": False}
    return AutoencoderDC(latent_channels=32, attention_head_dim=8, scaling_factor=0.41407, **sides, **shortcuts).eval()


def make(kind: str):
    if kind == "DC":
        return deep_compression()
    torch.manual_seed(0)
    return AutoencoderKL(**small_blocks(), **{"SD3": SD3, "FLUX": FLUX, "whitened": WHITENED}[kind]).eval()


@pytest.mark.parametrize(
    ("kind", "channels", "factor"), [("SD3", 16, 8), ("FLUX", 16, 8), ("DC", 32, 32), ("whitened", 4, 8)]
)
def test_scale_and_shift_of_each_kind_are_undone(tmp_path, kind, channels, factor):
    network = make(kind)
    network.save_pretrained(tmp_path)
    codec = load_autoencoder(str(tmp_path))
    assert isinstance(codec, LatentCodec) and (codec.channels, codec.factor) == (channels, factor)
    assert read_factor(str(tmp_path)) == factor
    images = torch.rand(1, 3, 2 * factor, 3 * factor, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = codec.encode(images)
    assert mean.shape == (1, channels, 2, 3)
    with torch.no_grad():
        encoded = network.encode(images)
        raw = encoded.latent if kind == "DC" else encoded.latent_dist.mean
        expected = network.decode(raw).sample
    torch.testing.assert_close(codec.decode(mean[0]), expected[0], atol=1e-4, rtol=1e-4)
    assert not std.any() if kind == "DC" else bool((std > 0).all())
    shifts = torch.tensor(WHITENED["latents_mean"]) if kind == "whitened" else network.config.get("shift_factor") or 0.0
    stds = torch.tensor(WHITENED["latents_std"]) if kind == "whitened" else 1.0
    by_channel = raw.movedim(1, 3)
    torch.testing.assert_close(mean.movedim(1, 3), (by_channel - shifts) * network.config.scaling_factor / stds)


class Numbered(torch.nn.Module):
    """In place of a decoder: every tile has a number as its value, so that a seam is a step."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor, self.calls = factor, 0

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        height, width = latents.shape[2] * self.factor, latents.shape[3] * self.factor
        return torch.full((len(latents), 3, height, width), float(self.calls % 2))


@pytest.mark.parametrize("kind", ["FLUX", "DC"])
def test_large_images_are_decoded_in_tiles_that_blend(monkeypatch, kind):
    network = make(kind)
    codec = LatentCodec(network, "cpu")
    latent = torch.zeros(codec.channels, 40, 40)
    monkeypatch.setattr("fitv2.images.autoencoder.LARGEST_UNTILED", 256 * 256)
    network.decoder = Numbered(codec.factor)
    tiled = codec.decode(latent)
    assert tiled.shape == (3, 40 * codec.factor, 40 * codec.factor) and not network.use_tiling
    assert network.decoder.calls > 4 and tiled.min() == 0 and tiled.max() == 1
    assert max(tiled.diff(dim=axis).abs().max() for axis in (1, 2)) < 0.3  # Corners blend twice.


def test_sides_that_are_no_multiples_are_refused():
    codec = LatentCodec(deep_compression(), "cpu")
    with pytest.raises(UserError, match="not 48x64"):
        codec.encode(torch.zeros(1, 3, 48, 64))


@pytest.mark.parametrize("wrong", [{"latents_mean": (0.0,)}, {"latents_std": (1, 1, 0, 1)}])
def test_means_and_deviations_that_do_not_fit_are_refused(wrong):
    network = make("whitened")
    network.register_to_config(**wrong)
    with pytest.raises(UserError, match="latents_std"):
        LatentCodec(network, "cpu")


def test_a_deterministic_autoencoder_prepares_latents(tmp_path):
    make("DC").save_pretrained(tmp_path)
    encoder, preparation = build_encoder(str(tmp_path), 64, 1, "resize", False, None, "cpu")
    assert (preparation.channels, preparation.factor, preparation.patch) == (32, 32, 32)
    moments = encoder((torch.rand(2, 3, 32, 64) * 255).byte().numpy())
    assert moments.shape == (2, 1, 2, 32, 1, 2) and not moments[:, :, 1].any() and moments[:, :, 0].any()

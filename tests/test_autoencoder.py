"""KL autoencoders: tiles for large images, folders, and what is not there."""

import json

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

from fitv2 import FiTConfig, FiTPipeline, FiTTransformer2DModel
from fitv2.adapters.schedulers import default_scheduler
from fitv2.checkpoints.model_folder import load_pretrained, save_pretrained
from fitv2.errors import UserError
from fitv2.finite import NotFinite
from fitv2.images.autoencoder import LatentCodec, Pixels, load_autoencoder, read_factor
from fitv2.images.make_images import Decoding, make_images
from fitv2.sampling.spec import SampleSpec, Sampling
from tiny import random_model, tiny_autoencoder

LATENT = FiTConfig(width=32, depth=1, heads=2, num_classes=5)


def test_an_autoencoder_by_folder_and_one_that_is_not_there(tmp_path):
    vae = tiny_autoencoder()
    vae.save_pretrained(tmp_path / "pipeline" / "vae")
    vae.save_pretrained(tmp_path / "alone")
    latent = torch.randn(4, 4, 4)
    for name in ("pipeline", "alone"):
        assert torch.equal(
            load_autoencoder(str(tmp_path / name)).decode(latent), LatentCodec(vae, "cpu").decode(latent)
        )
        assert read_factor(str(tmp_path / name)) == LatentCodec(vae, "cpu").factor == 8
    assert load_autoencoder(None).decode(latent) is latent and read_factor(None) == 1
    for read in (load_autoencoder, read_factor):
        with pytest.raises(ValueError, match=r"nowhere cannot be loaded"):
            read(str(tmp_path / "nowhere"))
        with pytest.raises(UserError, match="no folder nowhere"):  # At once: a hub id has an owner.
            read("nowhere")


def test_a_model_folder_may_have_its_autoencoder_within(tmp_path):
    """It may then be moved; without a folder of that name, `vae` is a name like any other."""
    model = random_model(LATENT)
    save_pretrained(tmp_path / "model", model.config, model.state_dict(), [], [[(8, 8, 1)]], None, "vae")
    assert load_pretrained(tmp_path / "model").autoencoder == "vae"
    tiny_autoencoder().save_pretrained(tmp_path / "model" / "vae")
    (tmp_path / "model").rename(tmp_path / "moved")
    assert load_pretrained(tmp_path / "moved").autoencoder == str((tmp_path / "moved" / "vae").resolve())
    assert read_factor(load_pretrained(tmp_path / "moved").autoencoder) == 8


def save_changed(folder, change) -> str:
    """A saved autoencoder whose weights `change` has had."""
    tiny_autoencoder().save_pretrained(folder)
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    change(weights)
    save_file(weights, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    return str(folder)


CHANGES = {
    "missing decoder.conv_out.bias": lambda weights: weights.pop("decoder.conv_out.bias"),
    "unexpected extra": lambda weights: weights.update(extra=torch.zeros(1)),
    "decoder.conv_out.bias expected shape": lambda weights: weights.update({"decoder.conv_out.bias": torch.zeros(4)}),
    "not finite": lambda weights: weights["decoder.conv_out.bias"].fill_(torch.nan),
}


@pytest.mark.parametrize("problem", CHANGES)
def test_weights_that_do_not_belong_are_refused(tmp_path, problem):
    pipe = FiTPipeline(FiTTransformer2DModel.from_fit(random_model(LATENT)), default_scheduler(), tiny_autoencoder())
    pipe.save_pretrained(tmp_path)
    name = save_changed(tmp_path / "vae", CHANGES[problem])
    for load in (
        load_autoencoder,
        lambda _: load_autoencoder(str(tmp_path)),
        lambda _: FiTPipeline.from_pretrained(tmp_path),
    ):
        with pytest.raises(UserError, match=problem):
            load(name)


def test_another_class_of_autoencoder_is_one_sentence(tmp_path):
    small = {"encoder_block_out_channels": (8, 8), "num_encoder_blocks": (1, 1)}
    other = AutoencoderTiny(**small, decoder_block_out_channels=(8, 8), num_decoder_blocks=(1, 1))
    other.save_pretrained(tmp_path)
    for load in (load_autoencoder, read_factor):
        with pytest.raises(UserError, match="AutoencoderTiny"):
            load(str(tmp_path))
    with pytest.raises(UserError, match="AutoencoderTiny"):
        FiTPipeline(FiTTransformer2DModel.from_fit(random_model(LATENT)), default_scheduler(), other)


@pytest.mark.parametrize(
    "content",
    ["[]", '{"scaling_factor": null}', '{"shift_factor": "x"}', '{"latents_mean": 5, "latents_std": 5}', "null", "{"],
)
def test_a_damaged_configuration_is_one_sentence(tmp_path, content):
    tiny_autoencoder().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    changed = content if content[1:2] != '"' else json.dumps(json.loads(file.read_text()) | json.loads(content))
    file.write_text(changed)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_autoencoder(str(tmp_path))


@pytest.mark.parametrize("upcast", [True, False])
def test_float16_computes_in_float32_where_the_configuration_says_so(upcast):
    """In float16 the images overflow, as those of SDXL's autoencoder do."""
    vae = tiny_autoencoder()
    vae.register_to_config(force_upcast=upcast)
    vae.decoder.conv_in.weight.data *= 3e4
    latent = 1000 * torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0))
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    codec = LatentCodec(vae.half(), "cpu")
    if upcast:
        assert codec.decode(latent).isfinite().all() and vae.dtype == torch.float16
        assert all(moment.isfinite().all() for moment in codec.encode(pixels))
    else:
        with pytest.raises(NotFinite, match="autoencoder"):
            codec.decode(latent)


def test_images_of_one_size_share_a_pass_on_an_accelerator(monkeypatch):
    """The meta device stands in for one."""
    codec, passes, decoded = LatentCodec(tiny_autoencoder(), "meta"), [], []
    monkeypatch.setattr(codec, "decode_batch", lambda latents: passes.append(len(latents)) or latents)
    monkeypatch.setattr("fitv2.images.make_images.LARGEST_UNTILED", 3 * 32 * 32)
    with Decoding(codec, lambda number, image: decoded.append(number)) as decoding:
        for number, size in enumerate([(4, 4)] * 4 + [(4, 8)]):
            decoding.add(number, torch.zeros(4, *size))
    assert passes == [3, 1, 1] and decoded == list(range(5))


def test_encoding_undoes_scaling_and_shift_and_takes_tiles_for_large_images(monkeypatch):
    vae = tiny_autoencoder()
    codec = LatentCodec(vae, "cpu")
    images = torch.rand(2, 3, 48, 72, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = codec.encode(images)
    with torch.no_grad():
        raw = vae.encode(images).latent_dist
        expected = vae.decode(raw.mean).sample
    assert mean.shape == std.shape == (2, 4, 6, 9)
    assert torch.allclose(mean, (raw.mean - 0.1) * 0.5, atol=1e-6) and torch.allclose(std, raw.std * 0.5)
    assert torch.allclose(torch.stack([codec.decode(latent) for latent in mean]), expected, atol=1e-4)
    monkeypatch.setattr("fitv2.images.autoencoder.LARGEST_UNTILED", 32 * 32)
    tiled, _ = codec.encode(images)
    assert tiled.shape == mean.shape and not torch.equal(tiled, mean) and not vae.use_tiling
    pixels, none = load_autoencoder(None).encode(images)
    assert torch.equal(pixels, images) and not none.any()


def test_the_digest_is_of_weights_and_configuration_not_of_the_place(tmp_path):
    vae = tiny_autoencoder()
    vae.save_pretrained(tmp_path / "one")
    vae.save_pretrained(tmp_path / "other")
    digest = LatentCodec(vae, "cpu").digest()
    assert load_autoencoder(str(tmp_path / "one")).digest() == load_autoencoder(str(tmp_path / "other")).digest()
    assert load_autoencoder(str(tmp_path / "one")).digest() == digest
    vae.encoder.conv_in.weight.data[0, 0, 0, 0] += 1e-3
    assert LatentCodec(vae, "cpu").digest() != digest
    other = tiny_autoencoder()
    other.register_to_config(scaling_factor=0.25)
    assert LatentCodec(other, "cpu").digest() not in (digest, LatentCodec(vae, "cpu").digest())


def test_images_are_decoded_as_they_come_or_all_at_the_end(monkeypatch):
    """At the end if nobody waits: a failure then leaves no process of a sharded model alone with a batch."""
    monkeypatch.setattr("fitv2.sampling.generate.MAX_TOKENS", {"cpu": 1})  # A batch for each image, short ones first.
    model, codec, events = random_model(), Pixels(), []
    model.register_forward_hook(lambda *_: events.append("made"))
    monkeypatch.setattr(codec, "decode", lambda latent: events.append("decoded") or latent, raising=False)
    specs, once = [SampleSpec(0, (8, 12), 1), SampleSpec(3, (8, 8), 2)], Sampling(steps=1, solver="euler")
    at_the_end = make_images(model, codec, specs, once)
    assert events == ["made", "made", "decoded", "decoded"]
    events.clear()
    seen = {}
    as_they_come = make_images(model, codec, specs, once, seen.__setitem__)
    assert events == ["made", "decoded"] * 2 and list(seen) == [1, 0]
    assert [image.size for image in as_they_come] == [(12, 8), (8, 8)] and as_they_come == [seen[0], seen[1]]
    assert [image.tobytes() for image in at_the_end] == [image.tobytes() for image in as_they_come]

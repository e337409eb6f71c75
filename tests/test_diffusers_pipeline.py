"""The pipeline at home in diffusers: seeds, callbacks, labels, sizes, outputs."""

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
)

from fitv2 import FiTConfig, FiTPipeline, FiTTransformer2DModel, FiTv1Config, RopeScheme
from fitv2.adapters.arguments import draw_seeds, label_numbers
from fitv2.adapters.schedulers import default_scheduler
from fitv2.checkpoints.model_folder import load_pretrained
from fitv2.errors import UserError
from fitv2.finite import NotFinite
from fitv2.images.autoencoder import LatentCodec
from fitv2.sampling.generate import generate
from fitv2.sampling.spec import SampleSpec, Sampling
from fitv2.text import TextEncoder, load_text_encoder
from tiny import random_model, small_blocks, tiny_autoencoder

CALL = {"class_labels": ["trouser", 8, 3], "sizes": [(28, 12), (20, 28), (40, 16)], "seeds": [1, 2, 3]}
QUICK = CALL | {"num_inference_steps": 3}


@pytest.mark.parametrize("solver", [None, "ab2"])
def test_a_model_that_makes_nan_is_one_sentence(pipe, solver):
    pipe.transformer.fit.final_layer.linear.bias.data[0] = torch.nan
    with pytest.raises(NotFinite, match="not finite"):
        pipe(**QUICK, solver=solver)


def test_the_recommended_settings_of_the_model_are_the_defaults(pipe):
    given = {"num_inference_steps": 3, "output_type": "latent", "guidance_scale": 1.8, "guidance_interval": (0.3, 0.9)}
    expected = pipe(**CALL | given).images
    made = pipe(**QUICK, output_type="latent").images
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(made, expected, strict=True))


def test_our_own_samplers_make_the_same_as_generate(pipe):
    made = pipe(**QUICK, solver="heun", output_type="latent", guidance_interval=(0.2, 0.9)).images
    specs = [SampleSpec(*spec) for spec in zip([1, 8, 3], CALL["sizes"], [1, 2, 3], strict=True)]
    sampling = Sampling(steps=3, solver="heun", guidance=1.8, interval=(0.2, 0.9))
    torch.testing.assert_close(made, generate(load_pretrained("builtin:fashion").model, specs, sampling))


@pytest.mark.parametrize("solver", [None, "ab2", "dopri5"])
def test_an_image_depends_on_its_own_seed_only(pipe, solver):
    call = {"solver": solver, "output_type": "latent", "num_inference_steps": None if solver == "dopri5" else 3}
    together = pipe(**QUICK | call).images
    alone = pipe(8, [(20, 28)], seeds=[2], **call).images
    torch.testing.assert_close(together[1], alone[0], atol=1e-4, rtol=0)


def test_a_callback_changes_the_guidance_and_ends_the_call(pipe):
    def no_guidance(pipeline, step, time, tensors):
        pipeline._guidance_scale = 1.0
        return tensors

    def stop(pipeline, step, time, tensors):
        pipeline._interrupt = step == 1
        return tensors

    plain, changed, stopped = (
        pipe(**QUICK, output_type="latent", callback_on_step_end=callback).images
        for callback in (None, no_guidance, stop)
    )
    assert pipe.num_timesteps == 3 and pipe.guidance_scale == 1.8
    assert not torch.equal(plain[0], changed[0]) and not torch.equal(plain[0], stopped[0])


def test_labels_as_tensors_and_nested_lists(pipe):
    for labels, numbers in [(torch.tensor([1, 2]), [1, 2]), ([[1], ["pullover"]], [1, 2]), ("bag", [8]), (None, [10])]:
        assert label_numbers(pipe.classes, labels) == numbers


def test_kinds_of_output(pipe):
    images = pipe(**QUICK).images
    assert [image.size for image in images] == [(12, 28), (28, 20), (16, 40)]
    same = {"class_labels": [0, 1], "height": 20, "width": 24, "seeds": [1, 2], "num_inference_steps": 2}
    array, tensor = pipe(**same, output_type="np").images, pipe(**same, output_type="pt", return_dict=False)[0]
    assert array.shape == (2, 20, 24, 1) and tensor.shape == (2, 1, 20, 24)
    assert np.allclose(array[:, :, :, 0], tensor[:, 0].numpy()) and array.min() >= 0 and array.max() <= 1
    pixels = np.asarray(pipe(**same).images[0]) / 255
    assert np.abs(pixels - array[0, :, :, 0]).max() <= 0.5 / 255 + 1e-6


def test_generators_and_torchs_own_seed(pipe):
    call = {"class_labels": [1, 2], "num_inference_steps": 2, "output_type": "latent"}
    runs = [pipe(**call, generator=torch.Generator().manual_seed(5)).images for _ in range(2)]
    assert torch.equal(*runs)
    pair = [torch.Generator().manual_seed(5), torch.Generator().manual_seed(6)]
    assert torch.equal(pipe(**call, generator=pair).images[0], runs[0][0])
    torch.manual_seed(3)
    first = pipe(**call).images
    torch.manual_seed(3)
    assert torch.equal(pipe(**call).images, first) and not torch.equal(pipe(**call).images, first)


def test_drawn_seeds_are_below_32_bits_and_never_the_same():
    for generator in (torch.Generator().manual_seed(5), None):
        seeds = draw_seeds(50_000, generator)
        assert len(set(seeds)) == len(seeds) == 50_000 and 0 <= min(seeds) < max(seeds) < 2**32
    # Images of a generator stay as they were when seeds of 62 bits were drawn, of which torch took these 32.
    drawn = torch.randint(2**62, (50_000,), generator=torch.Generator().manual_seed(5)) % 2**32
    again = draw_seeds(50_000, torch.Generator().manual_seed(5))
    assert again[:1000] == drawn[:1000].tolist() and len(set(drawn.tolist()) - set(again)) == 0


@pytest.mark.parametrize("seeds", [[-1], [1.5], [2**64]])
def test_an_impossible_seed_is_refused(pipe, seeds):
    for solver in (None, "euler"):
        with pytest.raises(UserError, match="is not a seed"):
            pipe(1, [(8, 8)], seeds=seeds, solver=solver, num_inference_steps=1)


def test_callback_sees_and_replaces_the_latents(pipe):
    steps = []

    def zero_at_the_end(pipeline, step, time, tensors):
        steps.append((step, float(time), tensors["latents"].shape))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else {}

    made = pipe(**QUICK, callback_on_step_end=zero_at_the_end, output_type="latent").images
    assert [step for step, _, _ in steps] == [0, 1, 2] and all(image.abs().max() == 0 for image in made)
    assert {shape for _, _, shape in steps} == {(7 * 3 + 5 * 7 + 10 * 4, 16)}


def test_extrapolation_by_name_and_by_scheme(pipe):
    plain = pipe(**QUICK, output_type="latent").images
    named = pipe(**QUICK, output_type="latent", extrapolation="vision-ntk", attention_scale="paper").images
    rope = RopeScheme(method="ntk-aware", per_axis=True, attention="paper", train_side=7)
    given = pipe(**QUICK, output_type="latent", extrapolation=rope).images
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(named, given, strict=True))
    # 28x12 and 20x28 lie within the training size of 28x28: nothing changes for them.
    assert [torch.allclose(ours, theirs, atol=1e-5) for ours, theirs in zip(named, plain, strict=True)] == [1, 1, 0]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sizes": [(28, 10)] * 3}, "28x10 is not divisible by the patch of 4; the nearest is 28x8"),
        ({"sizes": [(28, 12)] * 2}, "2 sizes for 3 class labels"),
        ({"seeds": [1]}, "for 3 images: give one seed or generator"),
        ({"class_labels": ["trouser", 3, "hat"]}, "no class 'hat' in this model; its classes are 0 t-shirt, 1 trouser"),
        ({"class_labels": [1, 2, 11]}, "there is no class 11"),
        ({"height": 28}, "give sizes, or height and width for all, not both"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "a callback can have"),
        ({"output_type": "jpeg"}, "no output_type 'jpeg'; choose from pil"),
        ({"solver": "ddpm"}, "ddpm is not for this model, which predicts a velocity"),
        ({"extrapolation": "ntk2"}, "there is no extrapolation 'ntk2'"),
        ({"extrapolation": {"method": "yarn"}}, "extrapolation is a name or a RopeScheme"),
        ({"class_labels": []}, "there is no class label"),
        ({"class_labels": [1.0, 2, 3]}, "there is no class 1.0"),
        ({"seeds": 3}, "seeds 3 for 3 images"),
        ({"generator": torch.Generator()}, "give seeds, a generator or latents"),
        ({"sizes": ["28x12"] * 3}, "'28x12' is not a size"),
        ({"sizes": [(0, 0)]}, "0x0 is not divisible"),
        ({"sizes": [(28.0, 12.0)]}, r"\(28.0, 12.0\) is not a size"),
        ({"sizes": 28}, "28 is not a size"),
        ({"num_inference_steps": 3.0}, "steps 3.0 must be a whole number"),
        ({"prompt": 5}, "5 is no prompt"),
        ({"seeds": None, "generator": 5}, "generator is a torch.Generator or one per image, not 5"),
        ({"sizes": None, "height": 0}, "0x28 is not divisible"),
        ({"guidance_channels": 0}, "channels 0"),
        ({"guidance_interval": 0.5}, "the guidance interval 0.5"),
        ({"seeds": None, "latents": torch.zeros(3, 3)}, r"latents must be packed starting noise \(\d+, 16\), not"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_with_a_sentence(pipe, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        pipe(**QUICK | changes)


def test_latents_are_decoded_by_the_autoencoder(transformer):
    """A real AutoencoderKL of random weights: the published ones cannot be had offline."""
    vae = tiny_autoencoder()
    pipe = FiTPipeline(transformer, default_scheduler(), vae, {0: "tench", 1: "goldfish"})
    pipe.set_progress_bar_config(disable=True)
    call = {"class_labels": ["goldfish", 5], "sizes": [(64, 48), (32, 80)], "seeds": [1, 2], "num_inference_steps": 2}
    images, latents = pipe(**call).images, pipe(**call, output_type="latent").images
    assert [image.size for image in images] == [(48, 64), (80, 32)] and images[0].mode == "RGB"
    assert [tuple(latent.shape) for latent in latents] == [(4, 8, 6), (4, 4, 10)]
    with torch.no_grad():
        pixels = vae.decode(latents[0][None] / 0.5 + 0.1).sample[0]
    expected = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(images[0]), expected)
    with pytest.raises(ValueError, match=r"72x48 .*16.* 64x48"):
        pipe(1, [(72, 48)])


def test_fit_samples_by_diffusion_and_a_model_with_context_is_refused():
    transformer = FiTTransformer2DModel.from_fit(
        random_model(FiTv1Config(width=32, depth=1, heads=2, num_classes=5)), 8
    )
    pipe = FiTPipeline(transformer, default_scheduler())
    call = {"class_labels": [1, 2], "height": 8, "width": 12, "seeds": [1, 2], "num_inference_steps": 3}
    assert pipe(**call, solver="ddim", output_type="latent").images.shape == (2, 4, 8, 12)
    assert torch.equal(
        pipe(**call, output_type="latent").images, pipe(**call, solver="ddim", output_type="latent").images
    )
    with pytest.raises(ValueError, match=r"ab2 is not .*ddpm, ddim"):
        pipe(**call, solver="ab2", output_type="latent")
    model = FiTTransformer2DModel.from_fit(random_model(FiTConfig(width=32, depth=1, heads=2, context="cross")))
    with pytest.raises(ValueError, match="text_encoder"):
        FiTPipeline(model, default_scheduler())


def test_what_is_given_most_of_is_the_number_of_images(pipe):
    quick = {"num_inference_steps": 1, "output_type": "latent", "height": 8, "width": 8}
    for given in ({"seeds": [1, 2]}, {"class_labels": "bag", "seeds": [1, 2]}, {"generator": [torch.Generator()] * 2}):
        assert len(pipe(**quick, **given).images) == 2
    sizes = [(8, np.int64(12)), (8, 8), (4, 4)]
    for given in ({}, {"class_labels": "bag", "callback_on_step_end_tensor_inputs": None}):
        made = pipe(sizes=sizes, num_inference_steps=np.int64(1), **given).images
        assert [image.size for image in made] == [(12, 8), (8, 8), (4, 4)]
    with pytest.raises(UserError, match="2 sizes for 3 seeds"):
        pipe(sizes=sizes[:2], seeds=[1, 2, 3])


def test_arrays_and_tensors_work_like_lists(pipe):
    expected = pipe(**QUICK, output_type="latent").images
    given = {"class_labels": np.array([1, 8, 3]), "sizes": np.array(CALL["sizes"]), "seeds": torch.tensor([1, 2, 3])}
    for ours, theirs in zip(pipe(**QUICK | given, output_type="latent").images, expected, strict=True):
        assert torch.equal(ours, theirs)
    assert pipe("bag", (8, 12), num_inference_steps=1).images[0].size == (12, 8)


def test_an_offloaded_autoencoder_decodes_where_its_weights_go():
    """Weights on the meta device until a hook brings them, as sequential offloading has it."""
    from accelerate import cpu_offload

    vae, latent = tiny_autoencoder(), torch.randn(4, 4, 6)
    expected = LatentCodec(vae, "cpu").decode(latent)
    cpu_offload(vae, "cpu")
    assert next(vae.parameters()).device.type == "meta"
    torch.testing.assert_close(LatentCodec(vae, "cpu").decode(latent), expected)
    assert not any(parameter.is_inference() for parameter in vae.parameters())


def test_an_offloaded_text_encoder_computes_where_its_weights_go():
    from accelerate import cpu_offload

    known = load_text_encoder("builtin:minilm")
    expected = known(["a cat"])[0]
    cpu_offload(known.network, "cpu")
    offloaded = TextEncoder(known.network, known.tokenizer, "offloaded", torch.device("cpu"))
    torch.testing.assert_close(offloaded(["a cat"])[0], expected)


def test_a_pipeline_of_another_keeps_its_autoencoder(transformer):
    pipe = FiTPipeline(transformer, default_scheduler(), vae=tiny_autoencoder())
    assert FiTPipeline.from_pipe(pipe).vae is pipe.vae
    for output_type in ("pil", "np", "pt"):
        with pytest.raises(UserError, match="give the pipeline its vae"):
            FiTPipeline(transformer, default_scheduler())(1, num_inference_steps=1, output_type=output_type)


def test_parts_of_another_model_are_refused_before_anything_is_made(transformer):
    other = AutoencoderKL(**small_blocks(), latent_channels=16)
    with pytest.raises(UserError, match="the vae takes 16"):
        FiTPipeline(transformer, default_scheduler(), other)(1, num_inference_steps=1)
    config = FiTConfig(width=32, depth=1, heads=2, context="cross", context_channels=64)
    text, network = load_text_encoder("builtin:minilm"), FiTTransformer2DModel.from_fit(random_model(config))
    parts = {"text_encoder": text.network, "tokenizer": text.tokenizer}
    with pytest.raises(UserError, match="text encoder gives 384"):
        FiTPipeline(network, default_scheduler(), tiny_autoencoder(), **parts)(prompt="a cat", num_inference_steps=1)


def test_windows_and_two_passes(pipe):
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    specs = [SampleSpec(8, (28, 84), 4)]
    model, quick = load_pretrained("builtin:fashion").model, {"num_inference_steps": 3, "guidance_scale": 2.0}
    call = {"class_labels": "bag", "sizes": (28, 84), "seeds": [4], "output_type": "latent", **quick}
    plain = {"steps": 3, "interval": (0.3, 0.9), "guidance": 2.0}
    expected = generate(model, specs, Sampling(**plain, solver="euler", window=(28, 28)))
    scheduled, solved = (pipe(**call, window=(28, 28), solver=solver).images for solver in (None, "euler"))
    torch.testing.assert_close(list(solved), expected)
    torch.testing.assert_close(list(scheduled), expected, atol=1e-3, rtol=0)
    twice = generate(model, specs, Sampling(**plain, solver="ab2", upscale_from=49, upscale_side=7))
    torch.testing.assert_close(list(pipe(**call, upscale_from=49).images), twice)


def test_an_image_to_begin_with(pipe):
    image = pipe("bag", [(28, 28)], seeds=[0], num_inference_steps=2).images[0]
    wide = pipe(["bag", "bag"], sizes=(28, 56), image=image, anchor="left", num_inference_steps=2, seeds=[1, 2]).images
    assert all(np.array_equal(np.asarray(one)[:, :28], np.asarray(image)) for one in wide) and wide[0] != wide[1]
    assert pipe("bag", image=image, num_inference_steps=2).images[0].size == image.size
    for given, message in (
        ({"strength": 0.5}, "give image"),
        ({"anchor": "left"}, "give image"),
        ({"image": image, "upscale_from": 9}, "omit image"),
        ({"window": 28}, "two whole numbers"),
        ({"window": (27, 28)}, "not divisible"),
        ({"upscale_from": 49.5}, "whole number"),
    ):
        with pytest.raises(UserError, match=message):
            pipe("bag", **given)

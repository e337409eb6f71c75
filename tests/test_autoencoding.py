"""The training of an autoencoder: crops, the objective, resuming bit for bit, and what diffusers loads in the end."""

import json
import resource
import signal

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file

from fitv2.autoencoding.holdout import HeldOut
from fitv2.autoencoding.objective import Objective, PerceptualDistance
from fitv2.autoencoding.trainer import AutoencoderTrainer
from fitv2.data.crop_sources import open_crop_source
from fitv2.data.crops import Crops
from fitv2.data.loader import DataCursor, PackLoader
from fitv2.distributed.ranks import Ranks
from fitv2.errors import UserError
from fitv2.images.autoencoder import LatentCodec, load_autoencoder
from fitv2.settings.autoencoder import AutoencoderTrainingSettings
from fitv2.settings.read import build_autoencoder_recipe
from fitv2.training.watch import DataGone
from image_folders import save_image
from tiny import log_lines, tiny_autoencoder

NONE_HELD_OUT = np.empty(0, np.int64)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Gradients of several sizes: of 1, 2, 4 and 1 crops of 32 pixels; the last one is narrower than these."""
    root = tmp_path_factory.mktemp("images")
    for number, size in enumerate([(32, 32), (40, 60), (64, 64), (16, 90)]):
        save_image(root / f"{number}.png", *size)
    return root


def crops_of(folder, *held_out: int, min_scale: float = 1.0) -> Crops:
    source = open_crop_source(str(folder), 64, min_scale, 8, folder.parent / "sizes.json")
    return Crops([source], 4, [np.array(held_out, np.int64)])


def trainer(run, folder, *overrides: str) -> AutoencoderTrainer:
    """Six steps of a network of width 8 over two crops each, with a checkpoint in the middle."""
    tree = {
        "model": {"widths": [8, 8, 8, 8], "latent_channels": 4},
        "data": {"sources": [str(folder)], "crop": 32, "resolution": 64},
        "training": {
            **{"steps": 6, "warmup_steps": 0, "batch_size": 2, "precision": "fp32", "perceptual_weight": 0},
            **{"learning_rate": 3e-3, "workers": 1},
        },
        "log": {"checkpoint_every": 3, "sheet_every": 3, "holdout_every": 3},
    }
    recipe = build_autoencoder_recipe(tree, overrides)
    data = recipe.data
    source = open_crop_source(data.sources[0], data.resolution, data.min_scale, recipe.model.factor, run / "sizes.json")
    return AutoencoderTrainer(recipe, [source], run, Ranks(0, 1, CPU))


def test_large_images_give_several_crops_and_small_ones_are_continued_at_their_edges(folder):
    crops = crops_of(folder)
    assert len(crops) == 1 + 2 + 4 + 1 and [len(part.images) for part in crops.rounds] == [4, 2, 1, 1]
    view = crops.epoch(0, 0)
    images = [view.load(index) for index in range(len(crops))]
    assert all(image.shape == (3, 32, 32) for image in images) and (view.hw == 4).all()
    narrow, of_largest = images[3], [images[2], *images[5:]]
    assert torch.equal(narrow[:, 15:16].expand(-1, 17, -1), narrow[:, 15:]), "it is 16 rows high"
    assert len({image.sum().item() for image in of_largest}) == len(of_largest)
    assert all(map(torch.equal, images, [crops_of(folder).epoch(0, 0).load(i) for i in range(len(crops))]))
    assert not all(map(torch.equal, images, [crops.epoch(1, 0).load(i) for i in range(len(crops))]))


def test_no_crop_of_a_held_out_image_is_trained_on(folder):
    crops = crops_of(folder, 2)
    assert len(crops.held_out) == 4 and len(crops.measured) == 1
    crops.epoch(0, 0)
    seen = []
    loader = PackLoader(crops, 16, held_out=crops.held_out)
    for step in loader.steps(DataCursor()):
        seen.append(step.packs[0].batch.to_latents(8)[0])
        if step.after.epoch:
            break
    assert len(seen) == len(crops) - 4
    held = [crops.epoch(0, 0).load(int(i)) for i in crops.held_out]
    assert not any(torch.equal(a, b) for a in seen for b in held)


def test_sources_are_folders_lists_and_drawings(tmp_path, folder):
    listed = tmp_path / "some.txt"
    listed.write_text(f"{folder}/0.png\n{folder}/2.png\nmissing.png\n")
    source = open_crop_source(str(listed), 64, 1.0, 8, tmp_path / "sizes.json")
    whole = open_crop_source(str(folder), 64, 1.0, 8, tmp_path / "others.json")
    assert len(source) == 2 and source.report.skipped == [("missing.png", "not a file")]
    assert torch.equal(source.epoch(0, 0).load(1), whole.epoch(0, 0).load(2))
    drawings = open_crop_source("emoji", 512, 0.5, 8, tmp_path / "unused.json")
    both = Crops([source, drawings], 16, [NONE_HELD_OUT, drawings.held_out])
    assert len(drawings) > 1000 and both.epoch(0, 0).load(len(both) - 1).shape == (3, 128, 128)
    with pytest.raises(UserError, match="neither"):
        open_crop_source(str(folder / "0.png"), 64, 1.0, 8, tmp_path / "sizes.json")


def test_the_perceptual_distance_grows_with_blur_and_has_a_gradient():
    distance = PerceptualDistance(CPU)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    slight, strong = (torch.nn.functional.avg_pool2d(image, side, 1, side // 2) for side in (3, 7))
    slight.requires_grad_()
    values = [distance(one, image) for one in (image, slight, strong)]
    assert values[0] == 0 and 0 < values[1] < values[2] < 16
    values[1].sum().backward()
    assert slight.grad.any() and slight.grad.isfinite().all()
    assert all(torch.allclose(f.norm(dim=1), torch.ones(()), atol=1e-3) for f in distance.features(image))


def test_the_parts_of_the_objective():
    network = tiny_autoencoder()
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    objective = Objective(AutoencoderTrainingSettings(perceptual_weight=0, kl_weight=0.5), CPU)
    with torch.no_grad():
        parts = objective.reconstruct(network, images, None)
        posterior = network.encode(images).latent_dist
        expected = network.decode(posterior.mean).sample
        drawn = objective.reconstruct(network, images, torch.Generator().manual_seed(0))
    torch.testing.assert_close(parts.images, expected)
    torch.testing.assert_close(parts.l1, (expected - images).abs().mean((1, 2, 3)))
    torch.testing.assert_close(parts.kl, posterior.kl() / posterior.mean[0].numel())
    torch.testing.assert_close(objective.loss(parts), parts.l1 + 0.5 * parts.kl)
    assert not torch.allclose(drawn.images, parts.images)
    assert not parts.halved.any()


def test_halved_latents_are_compared_with_the_halved_image():
    network = tiny_autoencoder()
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    objective = Objective(AutoencoderTrainingSettings(perceptual_weight=0, kl_weight=0, halved_weight=0.25), CPU)
    with torch.no_grad():
        parts = objective.reconstruct(network, images, None)
        latents = network.encode(images).latent_dist.mean
        half_latents, half = (
            torch.nn.functional.interpolate(x, scale_factor=0.5, mode="area") for x in (latents, images)
        )
        expected = (network.decode(half_latents).sample - half).abs().mean((1, 2, 3))
        narrow = objective.reconstruct(network, images[:, :, :8], None)
    torch.testing.assert_close(parts.halved, expected)
    torch.testing.assert_close(objective.loss(parts), parts.l1 + 0.25 * expected)
    assert not narrow.halved.any(), "one row of latents cannot be halved"


def test_held_out_images_are_measured_in_batches_of_the_training(tmp_path, folder):
    run, seen = trainer(tmp_path, folder), []
    learner, images = run.learner, list(torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    vars(run.held_out)["images"] = images
    learner.network.encoder.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    figures = run.held_out.figures(learner)
    assert seen == [2, 2, 1]
    with learner.averaged():
        loss = torch.stack([learner.objective.loss(learner.reconstruct(image[None]))[0] for image in images]).mean()
    assert figures["holdout_loss"] == pytest.approx(float(loss), rel=1e-5) and figures["holdout_psnr"] > 0


def test_a_run_that_was_stopped_equals_one_that_was_not(tmp_path, folder):
    whole = trainer(tmp_path / "whole", folder)
    whole.fit(lambda figures: None)
    stopped = trainer(tmp_path / "stopped", folder)

    def stop(figures) -> None:
        if figures["step"] == 2:
            stopped.progress.termination.note(signal.SIGTERM, None)

    stopped.fit(stop)
    assert stopped.progress.stopped_by == signal.SIGTERM and stopped.progress.done == 3
    assert sorted(path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()) == ["step-00000003"]
    resumed = trainer(tmp_path / "stopped", folder)
    resumed.fit(lambda figures: None)
    assert resumed.progress.done == 6 and log_lines(tmp_path / "stopped") == log_lines(tmp_path / "whole")
    for name in ("checkpoints/step-00000006/ema", "checkpoints/step-00000006/optimizer", "vae/diffusion_pytorch_model"):
        one, other = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("whole", "stopped"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert (tmp_path / "stopped" / "samples" / "step-00000006.png").is_file()


def test_diffusers_loads_what_it_writes_and_latents_have_unit_variance(tmp_path, folder):
    run = trainer(tmp_path, folder, "training.kl_weight=0")
    run.fit(lambda figures: None)
    network = AutoencoderKL.from_pretrained(tmp_path / "vae")
    assert load_file(tmp_path / "vae/diffusion_pytorch_model.safetensors")["decoder.conv_out.bias"].dtype == torch.half
    codec = load_autoencoder(str(tmp_path))
    assert isinstance(codec, LatentCodec) and (codec.factor, codec.channels) == (8, 4)
    moments = [codec.encode(batch) for batch in run.measured]
    mean = torch.cat([mean for mean, _ in moments]).movedim(1, 0).flatten(1)
    variance = torch.cat([std for _, std in moments]).square().movedim(1, 0).flatten(1)
    torch.testing.assert_close(mean.mean(1), torch.zeros(4), atol=0.02, rtol=0)
    torch.testing.assert_close(mean.var(1, correction=0) + variance.mean(1), torch.ones(4), atol=0.02, rtol=0)
    # The averaged weights, as they are at the last checkpoint.
    average = load_file(tmp_path / "checkpoints/step-00000006/ema.safetensors")
    assert all(torch.equal(weight, average[name].half().float()) for name, weight in network.named_parameters())


def test_a_training_begins_with_the_weights_of_another(tmp_path, folder):
    first = trainer(tmp_path / "first", folder)
    first.fit(lambda figures: None)
    begins = f"training.init_from={tmp_path / 'first'}"
    second = trainer(tmp_path / "second", folder, begins)
    written = load_file(tmp_path / "first" / "vae" / "diffusion_pytorch_model.safetensors")
    for name, weight in second.learner.network.state_dict().items():
        assert torch.equal(weight, written[name].float()) and torch.equal(second.learner.ema.average[name], weight)
    second.fit(lambda figures: None)
    # It may be gone when the training is resumed.
    (tmp_path / "first").rename(tmp_path / "elsewhere")
    assert trainer(tmp_path / "second", folder, begins).begun is not None
    with pytest.raises(UserError, match="cannot be loaded"):
        trainer(tmp_path / "third", folder, begins)
    with pytest.raises(UserError, match="of other settings"):
        larger = "model.widths=[16, 16, 16, 16]", f"training.init_from={tmp_path / 'elsewhere'}"
        trainer(tmp_path / "fourth", folder, *larger)


def test_a_decoder_is_trained_alone_and_latents_stay_the_same(tmp_path, folder):
    """Also in a training that is resumed, and on other images, whose latents have another scale."""
    trainer(tmp_path / "first", folder).fit(lambda figures: None)
    Image.effect_noise((48, 48), 90).convert("RGB").save(tmp_path / "noise.png")
    (tmp_path / "list.txt").write_text("noise.png\n" * 4)
    alone = "training.trainable=decoder", f"training.init_from={tmp_path / 'first'}"
    for steps in (2, 4):
        sources = f"data.sources=[{tmp_path / 'list.txt'}]"
        trainer(tmp_path / "second", folder, *alone, sources, f"training.steps={steps}").fit(lambda figures: None)
        if steps == 2:  # A run that is killed while it writes may leave none.
            (tmp_path / "second" / "vae").rename(tmp_path / "gone")
    folders = [tmp_path / run / "vae" for run in ("first", "second")]
    before, after = (load_file(path / "diffusion_pytorch_model.safetensors") for path in folders)
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert "decoder" in changed and changed <= {"decoder", "post_quant_conv"}
    first, second = (AutoencoderKL.load_config(path) for path in folders)
    for key in ("latents_mean", "latents_std"):
        torch.testing.assert_close(first[key], second[key], rtol=1e-6, atol=1e-7)
    config = tmp_path / "first/vae/config.json"
    config.write_text(config.read_text().replace('"act_fn": "silu"', '"act_fn": "relu"'))
    with pytest.raises(UserError, match="act_fn"):
        trainer(tmp_path / "third", folder, *alone)
    for wrong in (alone[:1], (*alone, "training.kl_weight=1"), (*alone, "training.halved_weight=1")):
        with pytest.raises(UserError, match="trainable=decoder"):
            trainer(tmp_path / "third", folder, *wrong)


def test_it_learns(tmp_path, folder):
    learner = trainer(tmp_path, folder, "training.learning_rate=1e-2", "training.decay_fraction=0").learner
    crops = crops_of(folder).epoch(0, 0)
    errors = []
    for _ in range(30):
        errors.append(float(learner.backward([crops.load(2)], torch.Generator())["l1"]))
        learner.update(0)
    assert errors[-1] < errors[0] / 2


def test_held_out_images_are_measured_by_the_averaged_weights(tmp_path, folder):
    run = trainer(tmp_path, folder)
    held_out = HeldOut(crops_of(folder, 0, 2))
    before = held_out.figures(run.learner)
    assert len(held_out.images) == 2 and before.keys() == {"holdout_loss", "holdout_psnr"}
    for weight in run.learner.network.parameters():
        weight.data.zero_()
    assert held_out.figures(run.learner) == before
    assert HeldOut(crops_of(folder)).figures(run.learner) == {}


@pytest.mark.parametrize(
    ("steps", "told"), [(1, "is saved"), (0, r"no step was trained yet.*fitv2 autoencoder --resume")]
)
def test_images_that_vanish_end_the_training_with_the_last_step_saved(tmp_path, steps, told):
    """They vanish after the first step, or before it."""
    for number in range(4):
        save_image(tmp_path / "images" / f"{number}.png", 32, 32)
    run = trainer(tmp_path / "run", tmp_path / "images", "training.steps=50", "log.checkpoint_every=50")

    def remove(figures=None) -> None:
        for path in (tmp_path / "images").iterdir():
            path.unlink()

    if not steps:
        remove()
    with pytest.raises(DataGone, match=told):
        run.fit(remove)
    if steps:  # On crops that were read while they were there.
        config = json.loads((tmp_path / "run/vae/config.json").read_text())
        assert np.isfinite([config["latents_mean"], config["latents_std"]]).all()
    saved = [path.name for path in (tmp_path / "run").glob("checkpoints/*")]
    assert bool(run.progress.done) == bool(steps) and saved == [f"step-{run.progress.done:08d}"] * steps


def test_a_run_continues_on_its_own_images_alone(tmp_path, folder):
    trainer(tmp_path / "run", folder, "training.steps=1").fit(lambda figures: None)
    Image.new("RGB", (64, 64)).save(tmp_path / "other.png")
    (tmp_path / "others").mkdir()
    (tmp_path / "other.png").rename(tmp_path / "others/other.png")
    with pytest.raises(UserError, match="are not those on which"):
        trainer(tmp_path / "run", tmp_path / "others")


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("model.widths=[8, 12]", "multiples of 8"),
        ("model.widths=[8]", "two or more"),
        ("data.crop=20", "multiple of 8"),
        ("data.crop=128", "at most"),
        ("training.batchsize=4", "nearest is 'training.batch_size'"),
        ("training.decay_fraction=1", "overlap"),
    ],
)
def test_settings_that_do_not_hold_are_one_sentence(tmp_path, folder, setting, complaint):
    with pytest.raises(UserError, match=complaint):
        trainer(tmp_path, folder, "training.warmup_steps=1", setting)


def test_a_disk_that_fills_up_while_the_autoencoder_is_written(tmp_path, folder):
    """Stood in for by a limit on the size of files; the autoencoder of before stays."""
    run, limits = trainer(tmp_path / "run", folder, "training.steps=3"), resource.getrlimit(resource.RLIMIT_FSIZE)
    run.fit(lambda figures: None)
    before = {path: path.read_bytes() for path in (tmp_path / "run/vae").iterdir()}
    for limit in (300, 3000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            with pytest.raises(OSError, match="step 3 could not be saved"):
                run.save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert {path: path.read_bytes() for path in (tmp_path / "run").glob("*vae*/*")} == before

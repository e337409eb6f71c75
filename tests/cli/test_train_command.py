"""`fitv2 train`: runs that end, stop, resume, and refuse what would spoil them."""

import json
import os
import shutil
import signal
import threading
import time

import pytest
from PIL import Image

from fitv2.cli.progress import training_progress
from fitv2.errors import UserError
from fitv2.system.locks import locked


@pytest.fixture
def during(tmp_path):
    """Starts `action` in a thread once the run has logged three steps; the value waits for its end."""

    def start(action):
        log = tmp_path / "run/log.jsonl"

        def act() -> None:
            while not (log.exists() and log.read_bytes().count(b"\n") > 2):
                time.sleep(0.01)
            action()

        thread = threading.Thread(target=act)
        thread.start()
        return thread.join

    return start


def test_a_folder_with_a_broken_file_trains_to_the_end_and_the_file_is_named(train, fitv2, images, tmp_path):
    result = train("--set", "log.sample_every=2").ok()
    assert "11 image files, 10 usable, 1 skipped" in result.err and "cat/broken.jpg: " in result.err
    assert "2 classes: cat 5, dog 5" in result.err and "none is held out: that takes at least 640" in result.err
    (skipped,) = json.loads((tmp_path / "run/skipped.json").read_text())["skipped"]
    assert skipped[0] == "cat/broken.jpg" and skipped[1]
    assert "step 4/4  loss" in result.err and "tokens/s" in result.err
    assert "trained 4 steps" in result.out and "fitv2 sample run" in result.out
    lines = (tmp_path / "run/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    for sheet in ("inputs.png", "samples/step-00000002.png", "samples/step-00000004.png"):
        with Image.open(tmp_path / "run" / sheet) as image:
            assert min(image.size) > 100
    assert json.loads((tmp_path / "run/recipe.json").read_text())["data"]["source"] == "./images"
    sampled = fitv2("sample", "--model", "run", "--steps", 1, "--json")
    assert {row["class"] for row in sampled.json["images"]} == {"cat", "dog"}


def test_the_step_of_a_model_and_a_run_that_has_none_yet(train, fitv2, images, tmp_path):
    train(settings=["training.steps=3"]).ok()
    for name in ("run", "run/checkpoints", "run/checkpoints/step-00000003"):
        assert f"by {name} (step 3)" in fitv2("sample", "--model", name, "--labels", "cat", "--steps", 1).ok().out
    shutil.rmtree(tmp_path / "run/model")
    told = fitv2("sample", "--model", "run").sentence
    assert all(part in told for part in ("no model yet", "at step 2", "3 steps are done", "--resume --out run"))


def test_a_model_of_a_fixed_grid_trains_resumes_and_makes_its_own_size(train, fitv2, images, tmp_path):
    settings = ["model.architecture=SiT", "data.preprocessing=crop", "data.max_tokens=9", "log.sample_every=2"]
    train(settings=[*settings, "training.steps=2"]).ok()
    train("--resume", settings=settings).ok()
    assert (tmp_path / "run/samples/step-00000004.png").is_file()
    sampled = fitv2("sample", "--model", "run", "--steps", 1, "--json")
    side = 3 * json.loads((tmp_path / "run/model/config.json").read_text())["model"]["patch_size"]
    assert [row["size"] for row in sampled.json["images"]] == [[side, side]] * 2
    other = fitv2("sample", "--model", "run", "--size", f"{side}x{2 * side}")
    assert f"makes {side}x{side} latent pixels alone, and {side}x{2 * side} is asked for" in other.sentence
    assert "makes its own size only" in fitv2("sample", "--model", "run", "--extrapolation", "ntk").sentence
    mixed = train("--out", "other", settings=[*settings[:1], "data.flip=false"])
    assert "SiT takes squares of one size" in mixed.sentence
    assert fitv2("profile", "run", "--json").json["profiles"][0]["tokens"] == 9


def test_a_model_to_start_from_brings_its_size_and_may_be_gone_when_the_run_resumes(train, fitv2, images, tmp_path):
    train("--out", "base", settings=["model.patch_size=4"]).ok()
    small = ["training.max_tokens_per_batch=300", "training.warmup_steps=0", "log.checkpoint_every=2"]
    small += ["training.trainable=high-resolution", "model.extrapolation=vision-ntk"]
    settings = [word for setting in small for word in ("--set", setting)]
    tuned, ropes = ["train", "-d", "images", "--init-from", "base", "-o", "tuned", "--resume", *settings], []
    for steps in (2, 3):  # The same command continues.
        fitv2(*tuned, "--set", f"training.steps={steps}").ok()
        kept, network = (
            json.loads((tmp_path / "tuned" / file).read_text()) for file in ("recipe.json", "model/config.json")
        )
        shutil.rmtree(tmp_path / "base", ignore_errors=True)
        shutil.rmtree(tmp_path / "tuned/model")  # The checkpoint needs none of it.
        ropes.append(network["model"]["rope"])
    assert kept["model"]["width"] == network["model"]["width"] == 32
    assert kept["model"]["patch_size"] == 4 and kept["training"]["init_from"] == "base"
    assert ropes[0] == ropes[1] and ropes[0]["method"] == "ntk-aware"
    assert "--init-from cannot change" in fitv2(*tuned, "--init-from", "builtin:fashion").sentence


def test_held_out_images_are_in_the_progress_the_log_and_the_last_words(fitv2, tmp_path):
    settings = ["model.width=32", "model.depth=1", "model.heads=2", "training.max_tokens_per_batch=300"]
    settings += ["training.warmup_steps=0", "training.holdout=0.01", "log.holdout_every=1", "log.sample_every=null"]
    settings += ["log.distance_every=6", "log.distance_images=20"]
    chosen = [word for setting in settings for word in ("--set", setting)]
    run = ["train", "--recipe", "fashion-tiny", "--out", "run", *chosen]
    first = fitv2(*run, "--set", "training.steps=6").ok()
    assert "9,900 images, and measuring 100" in first.err
    last = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])
    assert (
        f"held out {last['holdout_loss']:.4f}, FD {last['fd']:.3g}" in first.err and "The held-out loss " in first.out
    )
    told = fitv2(*run, "--resume", "--set", "training.steps=7", "--set", "training.holdout=0.02").sentence
    assert "training.holdout=0.01" in told


def test_the_progress_has_no_loss_before_the_first_step(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    with training_progress(3) as show:
        before = capsys.readouterr().err
        show({"step": 1, "loss": 0.5, "tokens_per_second": 1000.0, "holdout_loss": 0.25})
        show({"step": 2, "loss": 0.75, "tokens_per_second": 1000.0})
    shown = before + capsys.readouterr().err
    assert "starting" in shown and "nan" not in shown and "loss 0.7500, held out 0.2500" in shown


def test_a_run_is_continued_on_request_only_and_not_with_another_network(train, fitv2, images, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/recipe.json").touch()
    first = train("--resume", settings=["training.steps=2"]).ok()
    assert "no run in run to continue; did you mean runs?" in first.err and "new one begins in run" in first.err
    assert "add --resume" in train().sentence
    assert "already holds a run" in train("--dry-run").sentence
    changed = train("--resume", settings=["model.depth=2", "data.flip=false"]).sentence
    assert "run was trained with model.depth=" in changed and "data.flip=" in changed
    result = train("--resume").ok()
    assert "continuing from run/checkpoints/step-00000002" in result.err
    assert "training.steps stays" not in result.err and "10 known from an earlier start" in result.err
    bare = ["train", "--data", "images", "--out", "run", "--resume", "--recipe"]
    assert "training.steps stays 4" in fitv2(*bare, "images").err
    told = fitv2(*bare, "latents").sentence
    assert "--recipe latents is another" in told
    (tmp_path / "run/begun.json").unlink()  # As a run of an older version.
    assert "training.steps stays 4, " in fitv2(*bare, "latents").ok().err


def test_a_change_is_told_once_it_has_an_effect(train, images):
    train().ok()
    faster = ["training.learning_rate=1"]
    nothing = train("--resume", settings=faster).ok()
    assert "nothing to do" in nothing.out and "from now on" not in nothing.err
    more = train("--resume", settings=[*faster, "training.steps=5"]).ok()
    assert "was 0.002 up to here" in more.err


def test_a_first_attempt_that_failed_leaves_nothing_in_the_way(train, images, tmp_path):
    assert "there is no folder ./picturse" in train(data="picturse").sentence
    lower = "lower training.max_tokens_per_batch"
    assert lower in train(settings=["training.max_tokens_per_batch=999999999"]).sentence
    train().ok()
    # Of a run, damaged files are told.
    weights = tmp_path / "run/checkpoints/step-00000004/ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    told = train("--resume").sentence
    assert "ema.safetensors is damaged" in told and "delete its folder" in told
    (tmp_path / "run/recipe.json").write_text('{"model": {"width": "wide"}}')
    told = train("--resume").sentence
    assert "recipe.json is damaged" in told and "remove it to continue" in told


def test_no_training_begins_among_files_of_others(train, images, tmp_path):
    theirs = tmp_path / "run/model/config.json"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("precious")
    for options in ([], ["--resume"]):
        assert "its model would be overwritten" in train(*options).sentence
    assert theirs.read_text() == "precious"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "--recipe"),
        (["--recipe", "images"], "--data"),
        (["--recipe", "fashion", "--devices", "2", "--json"], "--devices, --json: without effect without --dry-run"),
        (["--recipe", "fashion", "--dry-run", "--ignore-memory"], "--ignore-memory: without effect with --dry-run"),
        (["--recipe", "fashion", "--dry-run", "--utilisation", "0.3"], "without effect without --peak-tflops"),
        (["--resume", "--out", "nothing"], "no run in nothing"),
        (["--recipe", "fashion-tiny", "--set", "log.sample_guidance=.nan"], "finite"),
        (["--recipe", "fashion", "--set", "model.patch_size=8"], "fashion is cut into patches of 4"),
        (["--recipe", "fashion", "--set", "data.folder=nowhere"], "install the Debian package dataset-fashion-mnist"),
        (["--recipe", "fashion-tiny", "--set", "training.max_tokens_per_batch=30"], "does not fit a pack of 30 tokens"),
        (["--recipe", "imagenet-b", "--dry-run", "--devices", "3"], "8 batches a step cannot be shared evenly by 3"),
        (["--recipe", "imagenet-hr-xl", "--dry-run", "--set", "model.extrapolation=bogus"], "no extrapolation"),
        (["--recipe", "fashion-tiny", "--dry-run", "--set", "training.init_from=nowhere"], "nowhere is not a model"),
    ],
)
def test_what_a_training_cannot_begin_with_is_one_sentence(fitv2, words, part):
    assert part in fitv2("train", *words).sentence


def test_a_file_is_no_folder_of_images(train, tmp_path):
    (tmp_path / "list.txt").write_text("hello")
    assert "list.txt is a file" in train(data="list.txt").sentence


def test_folders_without_images(train, tmp_path):
    (tmp_path / "empty").mkdir()
    told = train(data="empty").sentence
    assert "no image files" in told and "in one sub-folder per class" in told
    (tmp_path / "empty/a.jpg").write_text("no image")
    told = train(data="empty").sentence
    assert "checking 1 file," in told and told.count("a.jpg: not an image") == 1
    assert told.splitlines()[-1].startswith("fitv2: "), "the error is the last line, which a study repeats"


def test_a_folder_of_any_name(train, images, tmp_path):
    for name in ("my #1: 'größe' 📷", os.fsdecode(b"caf\xe9")):
        images = images.rename(tmp_path / name)
        train("--dry-run", data=name).ok()
    train(data=name).ok()
    train("--resume", "--set", f"data.source={name}").ok()


def test_a_training_that_is_asked_to_stop_resumes_by_the_same_command(train, images, tmp_path, during):
    wait = during(lambda: os.kill(os.getpid(), signal.SIGTERM))
    stopped = train("--resume", settings=["training.steps=100000"])
    wait()
    step = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])["step"]
    assert stopped.code == 143, stopped.err
    assert f"stopped by SIGTERM at step {step}, which is saved; the same command with --resume" in stopped.out
    for told in ("trained", "nothing to do"):  # Which is no mistake either.
        ended = train("--resume", settings=[f"training.steps={step + 2}"]).ok()
        assert told in ended.out and f"{step + 2} steps" in ended.out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_resume_alone_ends_as_the_run_that_nobody_interrupted(
    train, fitv2, images, tmp_path, during, number
):
    """`--resume` needs neither the recipe nor its settings again; a second training meanwhile is refused."""
    settings = ["training.steps=60", "log.checkpoint_every=50"]
    train(settings=settings).ok()
    (tmp_path / "run").rename(tmp_path / "whole")
    refused = []

    def ask() -> None:
        with pytest.raises(UserError, match="in use"), locked(tmp_path / "run", "a training"):
            pass
        refused.append(True)
        os.kill(os.getpid(), number)

    wait = during(ask)
    stopped = train(settings=settings)
    wait()
    assert stopped.code == 128 + number and refused, stopped.err
    assert "which is saved" in stopped.out and "fitv2 train --resume --out run" in stopped.out
    fitv2("train", "--resume", "--out", "run").ok()
    for part in ("model", "ema", "optimizer"):
        file = f"checkpoints/step-00000060/{part}.safetensors"
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_data_that_vanishes_ends_the_training_before_anything_is_lost(train, fitv2, images, tmp_path, during):
    resume = ["train", "--resume", "--out", "run"]
    wait = during(lambda: images.rename(tmp_path / "elsewhere"))
    # Scaled at random, images do not stay in memory.
    settings = ["training.steps=100000", "log.checkpoint_every=100000", "data.min_scale=0.9"]
    told = train(settings=settings).sentence
    wait()
    assert "cannot be read" in told and "fitv2 train --resume --out run" in told
    last = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])
    kept = [path.name for path in (tmp_path / "run/checkpoints").glob("step-*")]
    assert last["skipped_images"] == 0 and kept == [f"step-{last['step']:08d}"]
    assert "--data FOLDER" in fitv2(*resume).sentence
    fitv2(*resume, "--data", "elsewhere/", "--set", f"training.steps={last['step'] + 2}").ok()
    # Other images of the same names, sizes and classes are other data; other classes are another training.
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "others")
    for path in (tmp_path / "others").rglob("*.png"):
        with Image.open(path) as image:
            turned = image.transpose(Image.Transpose.ROTATE_180)
        turned.save(path)
    assert "are not those of" in fitv2(*resume, "--data", "others").sentence
    # A loose image makes unclear what is meant, and may be answered.
    shutil.copy(next((tmp_path / "elsewhere/cat").glob("*.png")), tmp_path / "elsewhere/loose.png")
    assert "--set data.labels=folders" in fitv2(*resume).sentence
    told = fitv2(*resume, "--set", "data.labels=none").sentence
    assert "cat, dog" in told and "no classes" in told
    fitv2(*resume, "--set", "data.labels=folders").ok()
    (tmp_path / "elsewhere/loose.png").unlink()
    (tmp_path / "elsewhere/cat").rename(tmp_path / "elsewhere/kitten")
    for options in ([], ["--dry-run"]):
        told = fitv2(*resume, *options).sentence
        assert "cat, dog" in told and "dog, kitten" in told

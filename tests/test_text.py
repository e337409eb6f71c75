"""Texts from the encoder to images: features, captions of folders, training, sampling, guidance and the pipeline."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from fitv2 import FiT, FiTPipeline
from fitv2.build import build_dataset, build_model_config
from fitv2.checkpoints.model_folder import Pretrained, load_pretrained, save_pretrained
from fitv2.cli.requests import list_specs
from fitv2.data.dataset import Dataset
from fitv2.errors import UserError
from fitv2.evaluation.generated import SizeSpec, balanced_specs
from fitv2.sampling.generate import generate, guided_model
from fitv2.sampling.spec import SampleSpec, Sampling
from fitv2.settings.read import build_recipe, load_recipe
from fitv2.settings.recipe import TrainingSettings
from fitv2.text import BUILTIN, TextEncoder, load_text_encoder
from fitv2.tokens import TokenBatch, drop_conditions, pack_context
from fitv2.training.finetune import init_from
from fitv2.training.optimizer import Muon
from fitv2.training.run_folder import check_data, identity
from fitv2.training.sheets import data_lines
from fitv2.training.trainer import Trainer
from tiny import CLASSES, CONFIG, random_model

TINY = [
    "model.width=32",
    "model.depth=2",
    "model.heads=2",
    "model.patch_size=8",
    "model.internal_head=null",
    "data.max_tokens=9",
]
TINY += [
    "training.max_tokens_per_batch=64",
    "training.warmup_steps=1",
    "training.precision=fp32",
    "training.decay_fraction=0",
]
TINY += ["log.sample_every=null", "data.classes=none", "training.holdout=0.02", "log.holdout_every=3"]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return load_text_encoder(BUILTIN)


def with_captions(folder: Path) -> Path:
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (24, 16), (60 * number, 0, 0)).save(folder / f"{number}.png")
    return folder


def folder_data(folder: Path, **model) -> Dataset:
    tree = {"model": {"patch_size": 8, "context": "cross"} | model, "data": {"source": str(folder)}}
    recipe = build_recipe(tree)
    return build_dataset(recipe.data, 8, captioned=recipe.model.encoder is not None)


def test_captions_of_a_folder(tmp_path):
    """From text files, and from a table, which comes first; of several captions each epoch draws one."""
    folder = with_captions(tmp_path / "images")
    (folder / "0.txt").write_text("a black card\n\na dark card\n", encoding="utf-8")
    (folder / "1.txt").write_text("nobody reads this", encoding="utf-8")
    rows = [{"file_name": "1.png", "text": "a brown card"}, {"file_name": "2.png", "text": ["a red card", "a card"]}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = folder_data(folder)
    drawn = [{data.epoch(epoch, 0).caption(image) for epoch in range(20)} for image in range(4)]
    assert drawn == [{"a black card", "a dark card"}, {"a brown card"}, {"a red card", "a card"}, {""}]
    assert data.num_classes == 0 and len(data.examples(10)) == 4
    assert folder_data(folder, context="none").epoch(0, 0).caption(1) == ""


@pytest.mark.parametrize(
    ("table", "content"),
    [
        ("metadata.jsonl", '{"file_name": "0.png", "text": "a card"}'),
        ("metadata.csv", "file_name,prompt\n0.png,a card"),
        (None, ""),
    ],
)
def test_captions_that_nobody_asked_for_are_mentioned(tmp_path, table, content):
    folder = with_captions(tmp_path / "images")
    assert not folder_data(folder, context="none").unread_captions
    for name in [table] if table else ["0.txt", "1.txt", "2.txt"]:
        (folder / name).write_text(content or "a card", encoding="utf-8")
    data = folder_data(folder, context="none")
    assert data.unread_captions and not folder_data(folder).unread_captions
    assert "model.context" in " ".join(data_lines(data, build_recipe({}).training))


def test_a_model_of_text_needs_captions(tmp_path):
    with pytest.raises(UserError, match="has a caption"):
        folder_data(with_captions(tmp_path / "images"))
    recipe = build_recipe({"model": {"context": "joint"}})
    with pytest.raises(UserError, match="needs captions"):
        build_dataset(recipe.data, 4, captioned=True)
    with pytest.raises(UserError, match=r"without model\.context"):
        build_recipe({"model": {"text_encoder": "somewhere"}})


def test_label_and_text_are_lost_together():
    labels, texts = torch.zeros(400, dtype=torch.int64), [torch.full((1, 2), float(i)) for i in range(401)]
    dropped, context = drop_conditions(labels, 7, pack_context(texts), 0.3, torch.Generator().manual_seed(0))
    gone = context.x[:, 0] == 400
    assert torch.equal(gone, dropped == 7) and 80 < gone.sum() < 160
    assert torch.equal(context.x[~gone, 0], torch.arange(400.0)[~gone])


def trained(run: Path, *overrides: str) -> Trainer:
    recipe = load_recipe("emoji", [*TINY, *overrides])
    dataset = build_dataset(recipe.data, 8, captioned=recipe.model.encoder is not None)
    made = Trainer(recipe, dataset, build_model_config(recipe, dataset), run)
    made.fit(lambda figures: None)
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "run"
    trained(folder, "model.context=joint", "training.steps=6")
    return folder


def test_training_in_bfloat16_resumes_bit_for_bit_with_texts_and_muon_in_it(tmp_path):
    settings = "model.context=joint", "log.checkpoint_every=2", "training.precision=bf16"
    whole = trained(tmp_path / "whole", *settings, "training.steps=4")
    (muon,) = (part for part, _ in whole.learner.optimizer.parts if isinstance(part, Muon))
    assert whole.learner.text.network.dtype == muon.dtype == torch.bfloat16
    trained(tmp_path / "run", *settings, "training.steps=2")
    again = trained(tmp_path / "run", *settings, "training.steps=4")
    for name, weight in again.learner.ema.average.items():
        assert torch.equal(whole.learner.ema.average[name], weight), name


def test_captions_that_have_changed_are_mentioned_on_resume(tmp_path, caplog):
    folder = with_captions(tmp_path / "images")
    found = []
    for word in ("card", "tile"):
        (folder / "metadata.csv").write_text(f"file_name,text\n1.png,a {word}", encoding="utf-8")
        data = folder_data(folder)
        found.append(identity(data, data.examples(9)))
    before, after = found
    unread = folder_data(folder, context="none")
    assert before["content"] == after["content"] and "captions" not in identity(unread, unread.examples(9))
    check_data(tmp_path, build_recipe({}), before, before | {"trained": "all"})
    assert not caplog.text, "a table of captions alone is nothing to warn of"
    check_data(tmp_path, build_recipe({}), after, before | {"trained": "all"})
    assert "captions have changed" in caplog.text


def test_captions_change_what_is_learned(run, tmp_path, monkeypatch):
    monkeypatch.setattr("fitv2.data.dataset.Epoch.caption", lambda *_: "nothing")
    blind = trained(tmp_path / "blind", "model.context=joint", "training.steps=6")
    changed = load_pretrained(run).model.state_dict()
    assert any(not torch.equal(changed[name], weight) for name, weight in blind.learner.ema.average.items())


@pytest.mark.parametrize("kind", ["joint", "cross"])
def test_an_image_depends_on_its_own_request_alone(kind, encoder):
    model = random_model(replace(CONFIG, num_classes=0, context=kind, context_channels=384)).eval()
    specs = [SampleSpec(0, (8, 8), 0, "a red apple"), SampleSpec(0, (4, 12), 1, "a cat", "a dog in the rain, at night")]
    specs += [SampleSpec(0, (8, 8), 0, "a cat"), SampleSpec(0, (8, 8), 0)]
    sampling = Sampling(steps=2, guidance=3.0)
    together = generate(model, specs, sampling, None, encoder)
    for spec, latent in zip(specs, together, strict=True):
        torch.testing.assert_close(generate(model, [spec], sampling, None, encoder)[0], latent, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[0], together[2]) and not torch.allclose(together[2], together[3])
    (unguided,) = generate(model, specs[3:], Sampling(steps=2, guidance=1.0), None, encoder)
    torch.testing.assert_close(together[3], unguided)  # The empty prompt has nothing to be guided from.


def test_guidance_leads_from_the_negative_prompt_to_the_prompt(encoder):
    model = random_model(replace(CONFIG, num_classes=0, context="cross", context_channels=384)).eval()
    noise, t, y = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0]), torch.tensor([0])
    batch = TokenBatch(noise, [(2, 2)])
    good, bad = (model(batch, t, y, encoder.pack([text])) for text in ("a cat", "a dog"))
    for scale in (0.0, 1.0, 3.0):
        spec, sampling = SampleSpec(0, (8, 8), 0, "a cat", "a dog"), Sampling(guidance=scale)
        guided = guided_model(model, model.config, [spec], sampling, torch.device("cpu"), encoder)
        torch.testing.assert_close(guided(noise, t[0]), bad + scale * (good - bad), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["joint", "cross"])
def test_each_window_has_the_words_of_its_image(kind, encoder):
    model = random_model(replace(CONFIG, context=kind, context_channels=384))
    sampling = Sampling(steps=2, guidance=3.0, window=(8, 8))
    panorama, small = SampleSpec(0, (8, 32), 1, "a cat", "a dog"), SampleSpec(0, (8, 8), 2, "a long red train at night")
    together = generate(model, [panorama, small], sampling, None, encoder)
    torch.testing.assert_close(together[0], generate(model, [panorama], sampling, None, encoder)[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(together[1], generate(model, [small], sampling, None, encoder)[0], atol=1e-4, rtol=0)
    other = generate(model, [replace(panorama, prompt="a house")], sampling, None, encoder)[0]
    assert all(float((other - together[0])[..., x : x + 8].abs().max()) > 1e-3 for x in range(0, 32, 8))


def test_the_command_and_the_pipeline_make_the_same_images(fitv2, run, tmp_path):
    out, prompts = tmp_path / "out", tmp_path / "prompts.txt"
    prompts.write_text("a cat\n\na blue house\n", encoding="utf-8")
    words = ["sample", run, "--prompt", "a red apple", "--prompts", prompts, "--size", "24x24", "--size", "16x32"]
    words += ["--steps", 2, "--negative-prompt", "blurred", "--out", out, "--json", "--seed", 3]
    rows = fitv2(*words).json["images"]
    assert [row["prompt"] for row in rows] == ["a red apple"] * 2 + ["a cat"] * 2 + ["a blue house"] * 2
    assert Path(rows[0]["file"]).name == "a-red-apple_24x24_seed3.png"
    pipe = FiTPipeline.from_pretrained(str(run))
    pipe.save_pretrained(tmp_path / "pipe")
    call = {"prompt": ["a cat"], "sizes": [(16, 32)], "seeds": [6], "negative_prompt": "blurred"}
    assert "give --prompt" in fitv2("sample", "pipe", "--size", "16x32").sentence, "a pipeline keeps no captions"
    for one in (pipe, FiTPipeline.from_pretrained(str(tmp_path / "pipe"))):
        image = one(**call, num_inference_steps=2, solver="ab2").images[0]
        assert image.tobytes() == Image.open(rows[3]["file"]).tobytes()


def test_a_model_of_classes_can_be_given_words(encoder):
    """With cross-attention it begins with what it knows: its gate is closed."""
    base = Pretrained(random_model(CONFIG), list(CLASSES), [])
    data = SimpleNamespace(class_names=CLASSES, num_classes=len(CLASSES), autoencoder=None)
    worded = FiT(replace(CONFIG, context="cross", context_channels=384))
    start = init_from(worded, base, data, TrainingSettings(init_from="base"))
    assert start.notes == ["the text conditioning is new"] and len(start.reinitialised) == 18
    batch, t, y = TokenBatch(torch.randn(4, 16), [(2, 2)]), torch.rand(1), torch.tensor([3])
    assert torch.equal(base.model(batch, t, y), worded(batch, t, y, encoder.pack(["a cat"])))


def test_an_evaluation_takes_captions_of_training_at_their_own_sizes(run):
    pretrained = load_pretrained(run)
    assert pretrained.text_encoder == BUILTIN and len(pretrained.examples) == 1000
    specs = balanced_specs(pretrained, 1200, SizeSpec(), 5, 1)
    assert {(spec.prompt, spec.size) for spec in specs} == set(pretrained.examples)
    assert [spec.seed for spec in specs] == list(range(5, 1205)) and specs[:9] == balanced_specs(
        pretrained, 9, SizeSpec(), 5, 1
    )
    assert [spec.prompt for spec in specs[:9]] != [caption for caption, _ in pretrained.examples[:9]], "not in order"
    assert {spec.size for spec in balanced_specs(pretrained, 9, SizeSpec((16, 48)), 5, 1)} == {(16, 48)}


def test_a_showcase_is_drawn_where_nobody_asks_for_anything(run, tmp_path):
    known, showcase = load_pretrained(run), [("a cat", (8, 16)), ("two dogs", (16, 8))]
    assert len(list_specs(known, None, None, None, None, 0)) == 16, "captions of training"
    weights = known.model.config, known.model.state_dict()
    shown = {"text_encoder": known.text_encoder, "examples": known.examples, "showcase": showcase}
    save_pretrained(tmp_path, *weights, [], known.shapes, torch.float16, **shown)
    specs = list_specs(load_pretrained(tmp_path), None, None, None, None, 5)
    assert [(spec.prompt, spec.size, spec.seed) for spec in specs] == [("a cat", (8, 16), 5), ("two dogs", (16, 8), 6)]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["builtin:fashion", "--prompt", "a cat"], "knows classes and no text"),
        (["builtin:fashion", "--text-encoder", BUILTIN], "not conditioned on text"),
        (["builtin:fashion", "--prompts", "nowhere.txt"], "cannot be read"),
    ],
)
def test_prompts_that_cannot_be_used(fitv2, words, told):
    assert told in " ".join(fitv2("sample", *words).sentence.split())

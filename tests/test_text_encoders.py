"""Text encoders: the one that ships, those of transformers, and texts that are long, empty or no text."""

import json
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fitv2.errors import UserError
from fitv2.text import BUILTIN, TextEncoder, load_text_encoder, read_channels

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
PROMPTS = ["a red apple", "", "a cat and a dog in a row", "an apple"]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return load_text_encoder(BUILTIN)


def test_the_encoder_that_ships_knows_what_words_mean(encoder):
    def of(prompt: str) -> torch.Tensor:
        return encoder([prompt])[0].mean(0)

    def alike(one: str, other: str) -> float:
        return float(torch.cosine_similarity(of(one), of(other), dim=0))

    assert encoder.channels == 384 and len(encoder([""])[0]) == 2, "of no text there are two tokens"
    for word, near, far in (("jet", "airplane", "apple"), ("puppy", "dog", "car"), ("lorry", "truck", "flower")):
        assert alike(word, near) > alike(word, far) + 0.1


def test_features_depend_neither_on_neighbours_nor_on_the_cache(encoder):
    together = encoder.encode([*PROMPTS, "a much longer text, " * 5])
    for prompt, features in zip(PROMPTS, together, strict=False):
        torch.testing.assert_close(encoder.encode([prompt])[0], features, atol=1e-5, rtol=1e-5)
    first = encoder(PROMPTS)
    assert all(one is other for one, other in zip(first, encoder(PROMPTS), strict=True)), "computed once"


def test_a_long_text_is_cut_with_one_warning(encoder, caplog):
    encoder.cut = False
    found = encoder.encode(["word " * 400, "more " * 300])
    assert [len(features) for features in found] == [encoder.most_tokens] * 2
    assert caplog.text.count("is cut to the first 256") == 1


@pytest.mark.parametrize("kind", ["clip", "t5"])
def test_encoders_of_transformers_load_by_folder(tmp_path, kind, encoder):
    """With weights of their own; of CLIP the features before the last layer count."""
    small = {"vocab_size": 30522, "num_hidden_layers": 2, "num_layers": 2}
    if kind == "clip":
        width = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
        network = transformers.CLIPTextModel(transformers.CLIPTextConfig(**small, **width, eos_token_id=102))
    else:
        network = transformers.T5EncoderModel(transformers.T5Config(**small, d_model=32, d_ff=64, num_heads=2, d_kv=16))
    network.save_pretrained(tmp_path / "text_encoder")
    encoder.tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = load_text_encoder(str(tmp_path))
    ids = torch.tensor([encoder.tokenizer("a red apple")["input_ids"]])
    output = network.eval()(input_ids=ids, output_hidden_states=True)
    expected = output.hidden_states[-2] if kind == "clip" else output.last_hidden_state
    assert loaded.channels == 32
    torch.testing.assert_close(loaded(["a red apple"])[0], expected[0].detach(), atol=1e-5, rtol=1e-5)


def save_encoder(folder: Path, network, encoder, **tokenizer) -> str:
    """A network with the tokenizer of another, and what its file says; by default that is no length."""
    network.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["model_max_length"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config | tokenizer))
    return str(folder)


@pytest.fixture
def clip(tmp_path, encoder) -> Path:
    """A small CLIP with the 77 positions of all of them."""
    network = transformers.CLIPTextModel(transformers.CLIPTextConfig(vocab_size=30522, **SMALL, eos_token_id=102))
    return Path(save_encoder(tmp_path / "clip", network, encoder, model_max_length=77))


def test_texts_fill_an_encoder_whose_length_is_no_multiple_of_eight(clip):
    loaded = load_text_encoder(str(clip))
    assert [len(one) for one in loaded(["cat " * 70, "cat " * 74, "cat " * 300])] == [72, 76, 77]


@pytest.mark.parametrize("network", [transformers.CLIPTextModel, transformers.BertModel])
def test_texts_fill_an_encoder_whose_tokenizer_says_no_length(network, tmp_path, encoder):
    config = network.config_class(vocab_size=30522, **SMALL, max_position_embeddings=70, eos_token_id=102)
    loaded = load_text_encoder(save_encoder(tmp_path, network(config), encoder))
    assert [len(one) for one in loaded(["cat " * 60, "cat " * 300])] == [62, 70]


def test_of_an_encoder_and_a_decoder_the_encoder_counts(tmp_path, encoder):
    sizes = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    config = transformers.BartConfig(vocab_size=30522, d_model=32, encoder_ffn_dim=32, decoder_ffn_dim=32, **sizes)
    network = transformers.BartModel(config).eval()
    loaded = load_text_encoder(save_encoder(tmp_path, network, encoder))
    ids = torch.tensor([encoder.tokenizer("a red apple")["input_ids"]])
    expected = network.get_encoder()(input_ids=ids).last_hidden_state[0]
    torch.testing.assert_close(loaded(["a red apple"])[0], expected.detach(), atol=1e-5, rtol=1e-5)
    assert loaded.channels == read_channels(loaded.name) == 32


def test_a_network_that_wants_images_besides_is_one_sentence(tmp_path, encoder):
    image = {"image_size": 32, "patch_size": 16, **SMALL}
    config = transformers.SiglipConfig(text_config={"vocab_size": 30522, **SMALL}, vision_config=image)
    loaded = load_text_encoder(save_encoder(tmp_path, transformers.SiglipModel(config), encoder))
    with pytest.raises(UserError, match="texts alone"):
        loaded(["a red apple"])


def test_an_encoder_without_some_of_its_weights_is_refused(clip):
    weights = load_file(clip / "model.safetensors")
    save_file({name: one for name, one in weights.items() if "layers.0.mlp" not in name}, clip / "model.safetensors")
    with pytest.raises(UserError, match="lacks weights"):
        load_text_encoder(str(clip))


def test_a_text_without_tokens_has_one(encoder, monkeypatch):
    """Some tokenizers have no marks of start and end."""
    monkeypatch.setattr(encoder, "cache", {})

    def plain(texts: list[str], max_length: int = 999, **_: object) -> dict[str, list]:
        return {"input_ids": [[7] * min(len(text), max_length) for text in texts]}

    monkeypatch.setattr(encoder, "tokenizer", Mock(side_effect=plain, eos_token_id=None))
    assert [len(one) for one in encoder(["", "ab"])] == [1, 2]
    assert [len(one) for one in encoder(["", "a" * 900])] == [1, encoder.most_tokens]


def test_a_text_that_is_not_utf_8_is_one_sentence(encoder):
    with pytest.raises(UserError, match="not UTF-8"):
        encoder(["caf\udce9"])


@pytest.mark.parametrize("name", ["builtin:nothing", "nowhere/at-all"])
def test_an_encoder_that_is_not_there(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # Else the hub is asked many times.
    with pytest.raises(UserError, match=f"text encoder {name}"):
        load_text_encoder(name)

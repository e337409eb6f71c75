"""Text encoders: from prompts to the context tokens that a network attends to.

The features of a prompt do not depend on the prompts beside it: it is padded to the next multiple of eight tokens,
whatever the length of others. The empty prompt is a prompt too, of which an encoder makes its start and end tokens; it
stands for "no text" in training and in guidance.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from .checkpoints.state_dict import read_safetensors
from .data.text_features import TextFeatures
from .errors import UserError, loading
from .system.hashes import file_digest
from .tokens import TokenBatch, pack_context

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
BUILTIN = "builtin:minilm"
BUILTIN_FOLDER = Path(str(files("fitv2").joinpath("minilm")))
# Of a prompt; the rest is cut off, as encoders do by themselves at 77 to 512.
MOST_TOKENS = 256
# Prompts are padded to a multiple of this, so that a few batches hold prompts of all lengths.
ROUNDED = 8
# Features that stay in memory, so that captions that come back are not encoded again.
CACHED_BYTES = 256 * 2**20
# Endings of the files on which features depend.
DIGESTED = (".json", ".safetensors", ".bin", ".model", ".txt")
# After the name of a matrix of 8-bit numbers: the factor of each of its rows.
SCALE = "|scale"
# The class of transformers for a type of encoder whose usual one is more than that.
CLASSES = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
CLASSES |= {"clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel"}
# Weights that no feature depends on.
UNUSED = "pooler."


class TextEncoder:
    """A frozen text encoder of transformers.

    The features are the last hidden states; of CLIP those before its last layer, as in the text-to-image model of the
    paper (arXiv 2410.13925).

    Attributes:
        name: By which `load_text_encoder` loads it.
        channels: Numbers per token.
        most_tokens: Of a prompt; the rest is cut off.

    Args:
        device: Where it computes if something offloads its weights meanwhile; None: where they are.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        device: torch.device | None = None,
    ) -> None:
        self.network: Any = network.eval().requires_grad_(False)
        self._device = device
        self.tokenizer: Any = tokenizer
        self.name, self.channels = name, network.config.get_text_config().hidden_size
        # Tokenizers that say no length have one of 10^30, and positions of -1 have no end.
        limits = tokenizer.model_max_length, getattr(network.config, "max_position_embeddings", None)
        self.most_tokens = min(MOST_TOKENS, *(limit for limit in limits if limit and limit > 0))
        self.cache: dict[str, Tensor] = {}
        self.cut = False

    @property
    def device(self) -> torch.device:
        """Where the features are computed, and stay; with offloading the weights may be elsewhere."""
        return self._device or self.network.device

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> TextEncoder:
        """Moves the encoder to a device, and to another precision if one is given, and returns it."""
        self.network.to(device, dtype)
        self.cache.clear()
        return self

    def __call__(self, prompts: Sequence[str]) -> list[Tensor]:
        """Returns the features (tokens, channels) of each prompt, float32."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.cache]
        found = self.cache | dict(zip(new, self.encode(new), strict=True))
        held = sum(features.nbytes for features in found.values())
        self.cache = found if held <= CACHED_BYTES else {}
        return [found[prompt] for prompt in prompts]

    def pack(self, prompts: Sequence[str]) -> TokenBatch:
        """Returns the context batch of one prompt per image."""
        return pack_context(self(prompts))

    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """Returns the features of each prompt, always computed."""
        ids, of_length = self.tokenize(prompts), defaultdict(list)
        for number, one in enumerate(ids):
            of_length[min(-(-len(one) // ROUNDED) * ROUNDED, self.most_tokens)].append(number)
        features = [torch.empty(0)] * len(prompts)
        # Features of inference mode could not train a network.
        with torch.inference_mode(False), torch.no_grad():
            for length, numbers in of_length.items():
                tokens, mask = torch.zeros(2, len(numbers), length, dtype=torch.int64)
                for row, number in enumerate(numbers):
                    tokens[row, : len(ids[number])], mask[row, : len(ids[number])] = torch.tensor(ids[number]), 1
                hidden = self.hidden(tokens.to(self.device), mask.to(self.device))
                for number, one in zip(numbers, hidden, strict=True):
                    features[number] = one[: len(ids[number])].clone()
        return features

    def hidden(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Returns the hidden states (B, length, channels) float32; mask: (B, length), 1 where tokens count."""
        penultimate = "clip" in self.network.config.model_type
        try:
            output = self.network(input_ids=tokens, attention_mask=mask, output_hidden_states=penultimate)
        except (AttributeError, TypeError, ValueError) as error:  # Of networks that want images or sounds besides.
            raise UserError(f"{self.name} does not encode texts alone ({error}): name a text encoder") from error
        return (output.hidden_states[-2] if penultimate else output.last_hidden_state).float()

    def tokenize(self, prompts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of each prompt. Says once that a prompt was too long."""
        if not prompts:
            return []
        for prompt in prompts:
            if not_text(prompt):
                raise UserError(f"the text {prompt!r} has bytes that are not UTF-8: write it in UTF-8")
        ids = self._ids(prompts, verbose=False)
        longest = max(range(len(ids)), key=lambda number: len(ids[number]))
        if len(ids[longest]) <= self.most_tokens:
            return ids
        if not self.cut:
            logger.warning(
                "a text of %d tokens is cut to the first %d: %.60s...",
                *(len(ids[longest]), self.most_tokens, prompts[longest]),
            )
            self.cut = True
        return self._ids(prompts, truncation=True, max_length=self.most_tokens)

    def _ids(self, prompts: Sequence[str], **options: Any) -> list[list[int]]:
        # Some tokenizers have no marks of start and end, and an encoder needs one token even of the empty text.
        least = [self.tokenizer.eos_token_id or 0]
        return [ids or least for ids in self.tokenizer(list(prompts), **options)["input_ids"]]


def not_text(prompt: str) -> bool:
    """Whether a string has surrogates, which stand for bytes that could not be decoded."""
    return any("\ud800" <= character <= "\udfff" for character in prompt)


class StoredTexts:
    """The features that `fitv2 prepare --text-encoder` stored, with the calls of the `TextEncoder` that made them.

    Other prompts are encoded; only the first of them loads the encoder.
    """

    def __init__(self, features: TextFeatures, name: str) -> None:
        self.features, self.name, self.device = features, name, torch.device("cpu")
        self.dtype: torch.dtype | None = None

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> StoredTexts:
        """Has the features on a device from now on, and what is not stored computed in a precision if one is given."""
        self.device, self.dtype = torch.device(device), dtype or self.dtype
        vars(self).pop("encoder", None)
        return self

    @cached_property
    def encoder(self) -> TextEncoder:
        """The encoder of prompts whose features are not stored."""
        logger.info("the text encoder %s is loaded: not all texts have stored features", self.name)
        return load_text_encoder(self.name).to(self.device, self.dtype)

    def __call__(self, prompts: Sequence[str]) -> list[Tensor]:
        """Returns the features (tokens, channels) of each prompt, float32."""
        stored = {prompt: self.features.get(prompt) for prompt in dict.fromkeys(prompts)}
        found = {
            prompt: torch.from_numpy(one).to(self.device).float() for prompt, one in stored.items() if one is not None
        }
        if others := [prompt for prompt in stored if prompt not in found]:
            found |= zip(others, self.encoder(others), strict=True)
        return [found[prompt] for prompt in prompts]

    def pack(self, prompts: Sequence[str]) -> TokenBatch:
        """Returns the context batch of one prompt per image."""
        return pack_context(self(prompts))


PromptEncoder = TextEncoder | StoredTexts


def load_text_encoder(name: str) -> TextEncoder:
    """Loads `builtin:minilm`, or the encoder of a folder (also of a pipeline) or hub id, in float32 on the CPU.

    Raises UserError if there is none, or it is no text encoder.
    """
    import transformers

    # Networks draw initial values, from the random numbers of whoever loads them.
    with _loading(name) as (folder, of_network, of_tokenizer), torch.random.fork_rng(devices=[]):
        config = transformers.AutoConfig.from_pretrained(folder, **of_network)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **of_tokenizer)
        if name == BUILTIN:
            network: Any = transformers.BertModel(cast(transformers.BertConfig, config), add_pooling_layer=False)
            network.load_state_dict(dequantised(read_safetensors(BUILTIN_FOLDER / "model.safetensors")))
        else:
            kind: Any = getattr(transformers, CLASSES.get(config.model_type, "AutoModel"))
            network, found = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **of_network)
            if missing := sorted(key for key in found["missing_keys"] if not key.startswith(UNUSED)):
                raise UserError(f"{name} lacks weights, such as {missing[0]}: copy or download it again")
            if kind is transformers.AutoModel and config.is_encoder_decoder:
                network = network.get_encoder()
        return TextEncoder(network, tokenizer, name)


def read_channels(name: str) -> int:
    """Returns the numbers per token of an encoder, from its configuration alone. Raises UserError as loading does."""
    import transformers

    with _loading(name) as (folder, of_network, _):
        return transformers.AutoConfig.from_pretrained(folder, **of_network).get_text_config().hidden_size


def encoder_digest(name: str) -> str:
    """Returns the SHA-256 of the files of an encoder and its tokenizer, or of a hub id and its commit.

    No network is loaded. Raises UserError as loading does.
    """
    from transformers.utils.hub import cached_file

    result = hashlib.sha256()
    with _loading(name) as (folder, of_network, of_tokenizer):
        if not Path(folder).is_dir():
            # In the cache of the hub, the folder of a version is called by its commit.
            commit = Path(cast(str, cached_file(name, "config.json"))).parent.name
            return hashlib.sha256(f"{name} {commit}".encode()).hexdigest()
        parts = {Path(folder, *part.values()) for part in (of_network, of_tokenizer)}
        for path in sorted(path for part in parts for path in part.iterdir() if path.suffix in DIGESTED):
            result.update(f"{path.relative_to(folder)} {file_digest(path)}\n".encode())
    return result.hexdigest()


@contextmanager
def _loading(name: str) -> Iterator[tuple[str, dict[str, str], dict[str, str]]]:
    """Yields the folder or hub id, and what tells its network and its tokenizer; see `loading`."""
    if name.startswith("builtin:") and name != BUILTIN:
        raise UserError(f"there is no text encoder {name}: the one that ships is {BUILTIN}")
    folder = str(BUILTIN_FOLDER) if name == BUILTIN else name
    network, tokenizer = (
        {"subfolder": part} if (Path(folder) / part).is_dir() else {} for part in ("text_encoder", "tokenizer")
    )
    with loading(f"the text encoder {name}"):
        yield folder, network, tokenizer


def quantised(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns matrices as 8-bit numbers with a float16 factor per row, vectors in float16: a quarter of the bytes."""
    packed = {}
    for name, weight in weights.items():
        if weight.ndim < 2:
            packed[name] = weight.half()
            continue
        scale = (weight.abs().amax(1, keepdim=True) / 127).half().clamp(min=1e-7)
        packed |= {name: (weight / scale.float()).round().clamp(-127, 127).to(torch.int8), name + SCALE: scale}
    return packed


def dequantised(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Is the inverse of `quantised` but for rounding: returns float32 tensors."""
    weights = {name: tensor.float() for name, tensor in packed.items() if not name.endswith(SCALE)}
    return {name: weight * packed.get(name + SCALE, torch.ones(())).float() for name, weight in weights.items()}

"""Model folders: model.safetensors, and config.json with everything else that sampling needs to know."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..classes import Classes
from ..errors import UserError, damaged
from ..finite import check_weights
from ..messages import advised, command, counted
from ..model.config import NetworkConfig
from ..model.network import Network, bare_model, model_of
from ..model.presets import ARCHITECTURES, architecture_of
from ..sampling.spec import Sampling, check_recommended
from ..system.atomic import write_text
from .state_dict import check_floating, plain_names, read_safetensors, write_tensors

logger = logging.getLogger(__name__)
BUILTIN = "builtin:"
RECIPE, CHECKPOINTS = "recipe.json", "checkpoints"
# Optional, beside config.json: the sampling settings that suit the model best. A user may write or change it.
SAMPLING = "sampling.json"
# The folder of an autoencoder in that of a run, of a pipeline of diffusers, or of a model whose config.json says "vae".
VAE = "vae"
FORMAT = 1
# Enough for every size of a set like fashion, and for the frequent sizes of a folder of photographs.
MOST_SHAPES = 500
# Captions that stand for those of the training data, where an evaluation needs prompts.
MOST_EXAMPLES = 1000
# A caption, and the (height, width) of an image in latent pixels.
Example = tuple[str, tuple[int, int]]


@dataclass(frozen=True)
class Pretrained:
    """A network, and facts about its training data.

    Attributes:
        model: The network.
        class_names: One name per class, in the order of the labels; empty if the classes have no names.
        shapes: For each class (one entry for a set without classes) the (height, width, count) of its training images
            in latent pixels: the 500 most frequent sizes, the most frequent first.
        autoencoder: The folder or hub id of the autoencoder of the latents; None if the model generates pixels. A model
            folder may have it within, as `vae`.
        step: The training step of the weights, if it is known.
        text_encoder: The name of the text encoder; None for a model that is not conditioned on text.
        examples: Some captions of training, each with the (height, width) of its image in latent pixels.
        showcase: What it draws for somebody who asks for nothing: captions and sizes as in `examples`; may be empty.
        recommended: Settings of `Sampling` by name, the defaults for this model.
    """

    model: Network
    class_names: list[str]
    shapes: list[list[tuple[int, int, int]]]
    autoencoder: str | None = None
    step: int | None = None
    recommended: dict[str, Any] = field(default_factory=dict)
    text_encoder: str | None = None
    examples: list[Example] = field(default_factory=list)
    showcase: list[Example] = field(default_factory=list)

    def sampling(self, **given: Any) -> Sampling:
        """Returns the settings given, else those recommended for the model, else the defaults; see `Sampling.of`."""
        return Sampling.of(self.model.config, self.recommended, **given)

    @property
    def most_tokens(self) -> int | None:
        """The tokens of the largest image of training, if its size is known."""
        areas = [height * width for of_class in self.shapes for height, width, _ in of_class]
        return max(areas) // self.model.config.patch_size**2 if areas else None

    @property
    def longest_side(self) -> int | None:
        """The longest side of training in patches, if it is known."""
        sides = [max(height, width) for of_class in self.shapes for height, width, _ in of_class]
        return max(sides) // self.model.config.patch_size if sides else None

    @property
    def classes(self) -> Classes:
        return Classes(self.model.config.num_classes, dict(enumerate(self.class_names)))


def save_pretrained(
    folder: Path,
    config: NetworkConfig,
    weights: dict[str, Tensor],
    class_names: list[str],
    shapes: Sequence,
    dtype: torch.dtype | None,
    autoencoder: str | None = None,
    step: int | None = None,
    recommended: Mapping[str, Any] | None = None,
    text_encoder: str | None = None,
    examples: Sequence[Example] = (),
    showcase: Sequence[Example] = (),
) -> None:
    """Writes config.json and model.safetensors with the attributes of `Pretrained`; each file is always complete.

    sampling.json is written if there are recommendations; one that is there already stays otherwise. The weights come
    last, so that a folder with weights is whole.

    dtype: The dtype of the stored weights; None stores each in its own. Raises OSError if they cannot be written.
    """
    content = {"format": FORMAT, "architecture": architecture_of(config), "model": asdict(config)}
    content |= {"autoencoder": autoencoder, "step": step, "class_names": class_names, "shapes": shapes}
    if text_encoder is not None:
        content |= {"text_encoder": text_encoder, "examples": examples, "showcase": showcase}
    write_text(folder / "config.json", json.dumps(content))
    if recommended:
        write_text(folder / SAMPLING, json.dumps(recommended))
    write_tensors(folder / "model.safetensors", {key: tensor.to(dtype) for key, tensor in weights.items()})


def is_own_model(name: str | Path) -> bool:
    """Whether a name is a built-in model, a model folder, a run folder with a model, or a checkpoint of a run."""
    return str(name).startswith(BUILTIN) or files_of(Path(name))[1].exists()


def load_pretrained(name: str | Path, dtype: torch.dtype | None = torch.float32) -> Pretrained:
    """Loads a model in eval mode. Raises UserError if there is no such model, or if it is damaged.

    Args:
        name: `builtin:NAME`; a model folder; a run folder (its newest exported model); or a checkpoint of a run, or the
            folder of its checkpoints (the averaged weights of that one, or of the newest).
        dtype: The dtype of the weights; None loads no weights but builds the network on the meta device.
    """
    name = str(name)
    if name.startswith(BUILTIN):
        with as_file(files("fitv2").joinpath("builtin", name.removeprefix(BUILTIN))) as folder:
            return read_model(folder / "config.json", folder / "model.safetensors", name, dtype)
    config, weights = files_of(Path(name))
    if not weights.exists() and (Path(name) / RECIPE).is_file():
        raise UserError(not_yet(Path(name)))
    loaded = read_model(config, weights, name, dtype)
    state = weights.with_name("state.json")
    return replace(loaded, step=step_of(state)) if state.is_file() else loaded


def files_of(folder: Path) -> tuple[Path, Path]:
    """Returns where config.json and the weights of a model folder, a run or a checkpoint are, or would be."""
    if folder.resolve().name == CHECKPOINTS:
        folder = max(folder.glob("step-*/state.json"), default=folder / "none", key=step_of).parent
    for average in (folder / "ema.safetensors", folder / "shards"):
        if (average / ".metadata").is_file() or average.is_file():
            return folder.resolve().parent.parent / "model" / "config.json", average
    folder = folder / "model" if (folder / "model").is_dir() else folder
    return folder / "config.json", folder / "model.safetensors"


def step_of(state: Path) -> int:
    """Returns the step in a checkpoint's state.json. Raises UserError if the file is damaged."""
    try:
        return int(json.loads(state.read_bytes())["step"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise damaged(state, error, "take another checkpoint") from error


def not_yet(run: Path) -> str:
    """Says that a run has no model yet, and when it will have one."""
    try:
        recipe = json.loads((run / RECIPE).read_bytes())
        if recipe.get("kind") == "autoencoder":
            return f"{run} is the training of an autoencoder, not of a model: name it with --autoencoder"
        first = min(recipe["log"]["checkpoint_every"], recipe["training"]["steps"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{run} is a run without a model, and its {RECIPE} is damaged: name another run"
    log = run / "log.jsonl"
    done = counted(len(log.read_bytes().splitlines()) if log.is_file() else 0, "step is", "steps are")
    return (
        f"{run} has no model yet: the first is saved at step {first} (log.checkpoint_every), and {done} done. Wait for "
        f"it or, if the training has ended, continue it: {command('train', '--resume', '--out', run)}"
    )


def read_config(config_file: Path) -> tuple[dict[str, Any], NetworkConfig]:
    """Returns the content of config.json and the network configuration in it.

    Raises OSError, ValueError, KeyError or TypeError if the file is missing or damaged.
    """
    content = json.loads(config_file.read_bytes())
    if content["format"] != FORMAT:
        raise UserError(f"format {content['format']}, and this version reads {FORMAT}")
    return content, ARCHITECTURES[content.get("architecture", "FiTv2")](**content["model"])


def read_model(config_file: Path, weights_file: Path, name: str, dtype: torch.dtype | None) -> Pretrained:
    """Reads a model from its two files. Raises UserError, with its name, if one is missing or damaged."""
    for path in (config_file, weights_file):
        if not path.exists():
            what = path if Path(name).is_dir() else f"folder {name}"
            advice = "name the folder of a model or of a run of fitv2 train, or builtin:fashion"
            raise UserError(f"{name} is not a model: there is no {what}{advised(name, names_like(name), advice)}")
    try:
        content, config = read_config(config_file)
        shapes = [[(int(h), int(w), int(n)) for h, w, n in of_class] for of_class in content["shapes"]]
        examples, showcase = (
            [(str(caption), (int(h), int(w))) for caption, (h, w) in content.get(key, ())]
            for key in ("examples", "showcase")
        )
        class_names = content["class_names"]
        if len(class_names) not in (0, config.num_classes):
            raise UserError(f"it names {len(class_names)} of {config.num_classes} classes")
        weights = None if dtype is None else read_weights(weights_file, dtype)
        check_floating(weights or {})
    except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:  # Files that anybody may have written.
        raise damaged(f"the model {name}", error, "copy or train it again") from error
    try:
        model = bare_model(config) if weights is None else model_of(config, weights)
    except (UserError, TypeError) as error:  # Such as for a depth of 2.0.
        raise UserError(f"the model {name} is damaged: its config.json is of another model; {error}") from None
    check_weights(weights or {}, name)
    recommended = read_recommended(config_file.with_name(SAMPLING))
    known = {key: content[key] for key in ("autoencoder", "step", "text_encoder") if key in content}
    texts = {"examples": examples, "showcase": showcase}
    if known.get("autoencoder") == VAE and config_file.with_name(VAE).is_dir():
        known["autoencoder"] = str(config_file.with_name(VAE).resolve())
    return Pretrained(model, class_names, shapes, recommended=recommended, **texts, **known)


def read_recommended(path: Path) -> dict[str, Any]:
    """Returns the settings of a sampling.json, none if there is no such file. Raises UserError if it is damaged."""
    try:
        return check_recommended(json.loads(path.read_bytes())) if path.is_file() else {}
    except (ValueError, OSError) as error:
        raise damaged(path, error, "correct it, or remove it") from error


def suitable(recommended: Mapping[str, Any], config: NetworkConfig, name: str) -> dict[str, Any]:
    """Returns the settings recommended for the model `name` if they suit a network that starts from it, else none."""
    try:
        Sampling.of(config, recommended)
    except UserError as error:
        logger.info("the sampling settings recommended for %s are not kept: %s", name, error)
        return {}
    return dict(recommended)


def keep_recommended(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes settings as the folder's sampling.json, if there are any and the folder has no file of its own."""
    if settings and not (folder / SAMPLING).exists():
        write_text(folder / SAMPLING, json.dumps(settings))


def copy_recommended(source: Path, target: Path) -> None:
    """Gives a model folder the sampling.json of another one, as it is, if that has one."""
    if source != target and (source / SAMPLING).is_file():
        write_text(target / SAMPLING, (source / SAMPLING).read_text(encoding="utf-8"))


def names_like(name: str) -> list[str]:
    """Returns names that may have been meant: the built-in models, and the folders beside one that does not exist."""
    builtin = [BUILTIN + folder.name for folder in files("fitv2").joinpath("builtin").iterdir() if folder.is_dir()]
    folder = Path(name)
    if folder.exists() or not folder.parent.is_dir():
        return builtin
    return [*builtin, *(str(path) for path in folder.parent.iterdir() if path.is_dir())]


def read_weights(path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Reads the tensors of a safetensors file, or the averaged weights in a checkpoint's folder of shards.

    Tensors are converted to `dtype` one by one, so that there are never two copies of all of them.
    """

    def cast(name: str, tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    if path.is_dir():
        from .sharded import read_shards  # Takes long to load, and few checkpoints need it.

        return plain_names({name: cast(name, tensor) for name, tensor in read_shards(path, "ema.").items()})
    return plain_names(read_safetensors(path, cast))

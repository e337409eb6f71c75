"""How a pipeline is loaded and saved: as diffusers does, and from models of our own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from huggingface_hub import snapshot_download

from ..checkpoints.model_folder import Pretrained, is_own_model, load_pretrained
from ..classes import Classes
from ..images.autoencoder import read_network
from ..system.atomic import write_text
from .transformer import FiTTransformer2DModel, check_no_adapter, own_dtype

TRANSFORMER_MODULE = "fit_transformer"
PUSH_OPTIONS = ("repo_id", "commit_message", "private", "token", "create_pr")
# Of a repository on the hub; beside these, files of a variant that is not asked for.
NEVER_READ = ["*.bin", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.pb"]
# With these diffusers places or changes the weights of all parts while it loads them.
PLACED_BY_DIFFUSERS = {"device_map", "quantization_config"}
HUB_OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only", "proxies")


class SavedPipeline(DiffusionPipeline):
    """A pipeline in a folder or on the hub."""

    @classmethod
    def from_model(cls, pretrained: Pretrained, **parts: Any) -> Self:
        """Makes a pipeline of a model of our own."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike, **kwargs) -> Self:
        """Loads `builtin:NAME`, a model folder of `fitv2 train` or `fitv2 convert` (with `torch_dtype` alone), or the
        folder or hub id of a saved pipeline, with the arguments of diffusers. Runs no code of the folder.
        """
        name = str(pretrained_model_name_or_path)
        if is_own_model(name):
            parts = {part: kwargs.pop(part) for part in ("scheduler", "vae") if part in kwargs}
            return cls.from_model(load_pretrained(name, own_dtype(kwargs)), **parts)
        if not Path(name).is_dir():
            hub = {option: kwargs.pop(option) for option in HUB_OPTIONS if option in kwargs}
            unwanted = NEVER_READ if "variant" in kwargs else [*NEVER_READ, "*.*.safetensors"]
            name = snapshot_download(name, ignore_patterns=unwanted, **hub)
        folder, variant = Path(name) / "vae", kwargs.get("variant")
        if "vae" not in kwargs and folder.is_dir() and not kwargs.keys() & PLACED_BY_DIFFUSERS:
            dtype = kwargs.get("torch_dtype") or kwargs.get("dtype") or torch.float32
            dtype = dtype.get("vae", dtype.get("default", torch.float32)) if isinstance(dtype, dict) else dtype
            # As diffusers does for parts that do not have the variant.
            options = {"variant": variant} if variant and any(folder.glob(f"*.{variant}.*")) else {}
            kwargs["vae"] = read_network(name, "vae", dtype, **options)
        return super().from_pretrained(name, **kwargs)

    @classmethod
    def load_config(cls, *args, **kwargs) -> Any:
        """Reads a folder's model_index.json, with our classes in place of the code that it names for others."""
        config: Any = super().load_config(*args, **kwargs)
        content = config[0] if isinstance(config, tuple) else config
        if "transformer" in content:
            content["_class_name"] = cls.__name__
            content["transformer"] = [FiTTransformer2DModel.__module__, FiTTransformer2DModel.__name__]
        return config

    def save_pretrained(self, save_directory: str | Path, *args, push_to_hub: bool = False, **kwargs) -> None:
        """Saves as diffusers does, with the code by which its own class loads the folder (see above).

        Raises UserError if the transformer has an adapter (LoRA).
        """
        check_no_adapter(self.transformer)
        folder = Path(save_directory)
        hub = {option: kwargs.pop(option) for option in PUSH_OPTIONS if option in kwargs}
        super().save_pretrained(folder, *args, **kwargs)
        index = json.loads((folder / self.config_name).read_bytes())
        index["_class_name"] = ["pipeline", "FiTPipeline"]
        index["transformer"] = [TRANSFORMER_MODULE, FiTTransformer2DModel.__name__]
        write_text(folder / self.config_name, json.dumps(index, indent=2) + "\n")
        for path, module, name in (
            ("pipeline.py", "pipeline", "FiTPipeline"),
            (f"transformer/{TRANSFORMER_MODULE}.py", "transformer", "FiTTransformer2DModel"),
        ):
            write_text(folder / path, f'from fitv2.adapters.{module} import {name}\n\n__all__ = ["{name}"]\n')
        if push_to_hub:
            saved = {option: kwargs[option] for option in ("safe_serialization", "variant") if option in kwargs}
            self.push_to_hub(**{"repo_id": folder.name, **hub, **saved})


def classes_of(transformer: FiTTransformer2DModel, id2label: Mapping[Any, str] | None) -> Classes:
    """Returns the classes of a pipeline; JSON has made text of their numbers."""
    names = {int(number): name for number, name in (id2label or {}).items()}
    return Classes(transformer.fit.config.num_classes, names)


def read_model(folder: str, dtype: torch.dtype) -> Pretrained:
    """Returns the model in the folder of a saved pipeline; its autoencoder and text encoder are named, not loaded."""
    index: Any = SavedPipeline.load_config(folder)
    transformer = FiTTransformer2DModel.from_pretrained(folder, subfolder="transformer", dtype=dtype)
    classes, side = classes_of(transformer, index.get("id2label")), transformer.config.sample_size
    names = [classes.names.get(number, str(number)) for number in range(classes.count)] if classes.names else []
    vae, text = (folder if (Path(folder) / part).is_dir() else None for part in ("vae", "text_encoder"))
    recommended = index.get("sampling") or {}
    return Pretrained(transformer.fit, names, [[(side, side, 1)]], vae, recommended=recommended, text_encoder=text)

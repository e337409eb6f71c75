"""FiT as a pipeline of diffusers: images of many sizes, classes and prompts in one packed batch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from huggingface_hub import snapshot_download
from torch import Tensor

from ..atomic import write_text
from ..autoencoder import LatentCodec, Pixels, load_autoencoder, network_classes, read_network
from ..checkpoints.model_folder import Pretrained, is_own_model, load_pretrained
from ..classes import Classes
from ..decoding import decode_all
from ..errors import UserError
from ..finite import check_finite
from ..messages import check_known
from ..model.config import RopeScheme
from ..sampling.generate import generate, guided_model
from ..sampling.noise import ImageNoise
from ..sampling.spec import DEFAULT_STEPS, SampleSpec, Sampling, default_solver, without
from ..sheets import to_image
from ..text import TextEncoder, load_text_encoder
from ..tokens import TokenBatch
from .arguments import label_numbers, rope_scheme, sizes_of, specs_of, stacked, texts_of
from .schedulers import advance, check_scheduler, default_scheduler, set_steps
from .transformer import FiTTransformer2DModel, HookedModel, check_no_adapter, own_dtype

TRANSFORMER_MODULE = "fit_transformer"
PUSH_OPTIONS = ("repo_id", "commit_message", "private", "token", "create_pr")
# Of a repository on the hub; beside these, files of a variant that is not asked for.
NEVER_READ = ["*.bin", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.pb"]
# With these diffusers places or changes the weights of all parts while it loads them.
PLACED_BY_DIFFUSERS = {"device_map", "quantization_config"}
HUB_OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only", "proxies")
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
PIPELINE_CURES = "try torch_dtype=torch.float32, a size nearer to those of training, or a lower guidance_scale"


class FiTPipeline(DiffusionPipeline):
    """Images of classes or prompts, of any sizes, in packed batches.

    Load and use it::

        pipe = FiTPipeline.from_pretrained("builtin:fashion")  # or a folder, or a hub id
        images = pipe(class_labels=["bag", 3], sizes=[(28, 12), (20, 28)], seeds=[1, 2]).images
        images = pipe(prompt=["a red apple", "a cat"], sizes=[(64, 192), (96, 96)]).images  # for a model of text

    A folder of `save_pretrained` also loads by diffusers' own class, where this package is installed. The option allows
    the two files of code in it, which only import this package::

        pipe.save_pretrained("folder")
        pipe = DiffusionPipeline.from_pretrained("folder", trust_remote_code=True)

    An adapter (LoRA) is saved and loaded apart, see `FiTTransformer2DModel`::

        pipe.transformer.load_lora_adapter("folder")

    Args:
        transformer: The network.
        scheduler: Any scheduler of diffusers that integrates a rectified flow.
        vae: An AutoencoderKL or AutoencoderDC, or None where pixels are the latents.
        id2label: Names of the classes by number.
        sampling: Recommended settings, the defaults of a call: attributes of `fitv2.sampling.spec.Sampling` by name.
        text_encoder: Of transformers, for a model of text.
        tokenizer: Of the text encoder.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components: ClassVar = ["vae", "text_encoder", "tokenizer"]
    _callback_tensor_inputs: ClassVar = ["latents"]

    def __init__(
        self,
        transformer: FiTTransformer2DModel,
        scheduler: SchedulerMixin,
        vae: Any = None,
        id2label: dict | None = None,
        sampling: dict[str, Any] | None = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        if vae is not None and not isinstance(vae, tuple(network_classes().values())):
            raise UserError(f"the vae is an {type(vae).__name__}, and not an {' or '.join(network_classes())}")
        parts = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer}
        self.register_modules(transformer=transformer, scheduler=scheduler, **parts)
        self.register_to_config(id2label=id2label, sampling=sampling)
        if transformer is not None and transformer.fit.config.takes_text and None in (text_encoder, tokenizer):
            raise UserError("the transformer is conditioned on text: give text_encoder and tokenizer too")
        names = {int(number): name for number, name in (id2label or {}).items()}  # JSON has made text of the numbers.
        self.classes = Classes(transformer.fit.config.num_classes, names)
        self._guidance_scale, self._interrupt = 1.0, False

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

    @classmethod
    def from_model(cls, pretrained: Pretrained, scheduler: SchedulerMixin | None = None, **vae) -> Self:
        """Makes a pipeline of a model of our own; vae=...: instead of the one that the model names, None for none."""
        transformer = FiTTransformer2DModel.from_model(pretrained)
        if "vae" not in vae and pretrained.autoencoder is not None:
            codec = load_autoencoder(pretrained.autoencoder, dtype=transformer.dtype)
            vae["vae"] = codec.network if isinstance(codec, LatentCodec) else None
        names = dict(enumerate(pretrained.class_names)) or None
        sampling, parts = pretrained.recommended or None, dict(vae)
        if pretrained.text_encoder is not None:
            text = load_text_encoder(pretrained.text_encoder)
            parts |= {"text_encoder": text.network, "tokenizer": text.tokenizer}
        return cls(transformer, scheduler or default_scheduler(), id2label=names, sampling=sampling, **parts)

    def to_model(self, autoencoder: str | None, text_encoder: str | None) -> Pretrained:
        """Is the reverse of `from_model`; the names of its parts: None for pixels, and for a model of classes."""
        side, known = self.transformer.config.sample_size, self.classes.names
        names = [known.get(number, str(number)) for number in range(self.classes.count)] if known else []
        recommended = dict(self.config["sampling"] or {})
        about = {"recommended": recommended, "text_encoder": text_encoder}
        return Pretrained(self.transformer.fit, names, [[(side, side, 1)]], autoencoder, **about)

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

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Tensor | Sequence[int | str] | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_power: float | None = None,
        guidance_channels: int | None = None,
        internal_guidance: float | None = None,
        internal_interval: tuple[float, float] | None = None,
        seeds: Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        extrapolation: str | RopeScheme | None = None,
        attention_scale: str | None = None,
        solver: str | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Returns images, one per prompt or label, each of its own size.

        Args:
            class_labels: Numbers or names; None means no class.
            sizes: (height, width) in pixels, one per image or one for all; the default is the model's own.
            prompt: One or several, for a model of text; None means the empty one.
            negative_prompt: What guidance leads away from, one per image or one for all; None means from no text.
            height, width: The same for all images, instead of `sizes`.
            num_inference_steps: Steps; none with an adaptive solver. This and the guidance have the model's recommended
                values as defaults, else 25 steps and guidance 2 at all times.
            guidance_scale: The scale of classifier-free guidance; 1 means none.
            guidance_interval: Times in [0, 1] (1 is the image) between which guidance acts.
            guidance_power: Above 0 the scale falls to 1 by a cosine of that power.
            guidance_channels: Guides only the first channels of a latent (the authors: 3).
            internal_guidance: The scale of guidance by the internal head, for a model that has one; 1 means none.
            internal_interval: Times in [0, 1] between which internal guidance acts.
            seeds: One per image. An image is the same whatever else is in the batch.
            generator: One for all or one per image, from which the seeds are drawn, instead of `seeds`.
            extrapolation: A name of `fitv2.model.config.EXTRAPOLATIONS` or a RopeScheme.
            attention_scale: The attention factor of an extrapolation that is given by name.
            solver: One of this package's own solvers instead of the scheduler; FiT, a model of noise, has only those.
            latents: Packed starting noise (T, C) for the scheduler, instead of `seeds`.
            output_type: "pil", "np" or "pt" (stacked where all sizes are equal), or "latent" (a list of (c, h, w)).
            callback_on_step_end: Called as (pipeline, step, timestep, tensors); it gets and may replace "latents",
                packed as (T, C).
            callback_on_step_end_tensor_inputs: Only "latents".
            return_dict: Whether to return an ImagePipelineOutput instead of a tuple.

        Raises:
            UserError: Arguments that do not fit together or do not suit the model.
            NotFinite: The model made NaN or infinity.
        """
        config = self.transformer.fit.config
        if solver is None and (config.prediction == "epsilon" or config.target_blocks):  # No scheduler fits it.
            solver = default_solver(config)
        if solver is not None and (callback_on_step_end is not None or latents is not None):
            raise UserError(f"callback_on_step_end and latents go with a scheduler, not with the solver {solver}")
        if solver is None:
            check_scheduler(self.scheduler)
        check_known("output_type", output_type, OUTPUT_TYPES)
        if sizes is not None and not (height is width is None):
            raise UserError("give sizes, or height and width for all, not both")
        if sum(given is not None for given in (seeds, generator, latents)) > 1:
            raise UserError("give seeds, a generator or latents: each of them fixes the starting noise")
        if set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise UserError(f"a callback can have {self._callback_tensor_inputs} alone")
        own, factor = self.transformer.config.sample_size, self.codec.factor
        specs = specs_of(
            label_numbers(self.classes, class_labels),
            texts_of(prompt),
            texts_of(negative_prompt),
            sizes_of((height, width) if sizes is None else sizes, own * factor),
            seeds,
            generator,
            factor,
            config.patch_size,
        )
        recommended = self.config["sampling"] or {}
        sampling = Sampling.of(
            config,
            recommended if solver else without(recommended, "solver", "shift", "shift_tokens", "cache_interval"),
            steps=num_inference_steps,
            solver=solver,
            guidance=guidance_scale,
            interval=guidance_interval,
            power=guidance_power,
            channels=None if guidance_channels is None else guidance_channels * config.patch_size**2,
            internal_guidance=internal_guidance,
            internal_interval=internal_interval,
            rope=rope_scheme(config.rope, extrapolation, attention_scale),
        )
        model = HookedModel(self.transformer, self._execution_device)
        if solver is not None:
            made = generate(model, specs, sampling, None, self.text)
        else:
            made = self._scheduled(model, specs, sampling, latents, callback_on_step_end)
        images = self._finished(made, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _scheduled(
        self,
        model: HookedModel,
        specs: Sequence[SampleSpec],
        sampling: Sampling,
        latents: Tensor | None,
        callback: Callable | None,
    ) -> list[Tensor]:
        """Integrates with the pipeline's scheduler, all images in one packed batch."""
        config, device = model.config, model.device
        hw = torch.tensor([spec.size for spec in specs]) // config.patch_size
        if latents is None:
            latents = ImageNoise([s.seed for s in specs], hw.prod(1).tolist(), config.token_channels).draw()
        if latents.shape != (shape := (int(hw.prod(1).sum()), config.token_channels)):
            raise UserError(f"latents must be packed starting noise {shape}, not {tuple(latents.shape)}")
        guided = guided_model(partial(model, rope=sampling.rope), config, specs, sampling, device, self.text)
        x = latents.float().to(device)
        set_steps(self.scheduler, sampling.steps or DEFAULT_STEPS, device)
        self._interrupt, self._guidance_scale = False, sampling.guidance
        progress: Any = self.progress_bar
        for i, timestep in enumerate(progress(self.scheduler.timesteps)):
            if self.interrupt:
                break
            guided.scale = self.guidance_scale
            x = advance(self.scheduler, i, x, guided)
            if callback is not None:
                x = (callback(self, i, timestep, {"latents": x}) or {}).get("latents", x)
        made = TokenBatch(x.float(), hw).to_latents(config.patch_size)
        for latent, spec in zip(made, specs, strict=True):
            check_finite(latent, "the image that the model made", PIPELINE_CURES, f"seed {spec.seed}")
        return made

    @property
    def guidance_scale(self) -> float:
        """The guidance scale of the current call; a callback may set `_guidance_scale`."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Steps of the current call."""
        return len(self.scheduler.timesteps)

    @property
    def interrupt(self) -> bool:
        """A callback may set `_interrupt`, which ends the call after its step."""
        return self._interrupt

    @property
    def text(self) -> TextEncoder | None:
        """The encoder of prompts, for a model of text."""
        return TextEncoder(self.text_encoder, self.tokenizer, "the pipeline's") if self.text_encoder else None

    @property
    def codec(self) -> Pixels | LatentCodec:
        """The decoder of latents."""
        return Pixels() if self.vae is None else LatentCodec(self.vae, self._execution_device)

    def _finished(self, latents: list[Tensor], output_type: str) -> Any:
        """Returns latents as `output_type` says; arrays are stacked where all sizes are equal."""
        if output_type == "latent":
            return stacked(latents)
        images = [image.cpu() for image in decode_all(self.codec, latents)]
        if output_type == "pil":
            return [to_image(image) for image in images]
        images = [(image / 2 + 0.5).clamp(0, 1) for image in images]
        return stacked(images if output_type == "pt" else [image.permute(1, 2, 0).numpy() for image in images])

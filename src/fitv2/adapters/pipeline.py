"""FiT as a pipeline of diffusers: images of many sizes and classes in one packed batch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from huggingface_hub import snapshot_download
from torch import Tensor

from ..atomic import write_text
from ..autoencoder import KLAutoencoder, Pixels, decode_all, load_autoencoder, read_network
from ..checkpoints.model_folder import Pretrained, is_own_model, load_pretrained
from ..classes import Classes
from ..errors import UserError
from ..finite import check_finite
from ..generate import (
    Network,
    Sampling,
    Wish,
    check_divisible,
    check_sampling,
    default_solver,
    generate_with,
    guided,
)
from ..messages import counted
from ..model.rope import RopeScheme
from ..samplers.noise import ImageNoise
from ..samplers.ode import Velocity
from ..sheets import to_image
from ..tokens import TokenBatch
from .arguments import draw_seeds, flat, is_size, plain, stacked
from .schedulers import advance, check_scheduler, default_scheduler, set_steps
from .transformer import FiTTransformer2DModel, check_no_adapter, own_dtype

TRANSFORMER_MODULE = "fit_transformer"
PUSH_OPTIONS = ("repo_id", "commit_message", "private", "token", "create_pr")
# Of a repository on the hub; beside these, files of a variant that is not asked for.
NEVER_READ = ["*.bin", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.pb"]
# With these diffusers places or changes the weights of all parts while it loads them.
PLACED_BY_DIFFUSERS = {"device_map", "quantization_config"}
HUB_OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only", "proxies")
PIPELINE_CURES = "try torch_dtype=torch.float32, a size nearer to those of training, or a lower guidance_scale"


class FiTPipeline(DiffusionPipeline):
    """Class-conditional pictures of any sizes.

    vae: an AutoencoderKL, or None where pixels are the latents. scheduler: any of diffusers that integrates a rectified
    flow. id2label: names of the classes by number.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components: ClassVar = ["vae"]
    _callback_tensor_inputs: ClassVar = ["latents"]

    def __init__(
        self,
        transformer: FiTTransformer2DModel,
        scheduler: SchedulerMixin,
        vae: AutoencoderKL | None = None,
        id2label: dict | None = None,
    ) -> None:
        super().__init__()
        if vae is not None and not isinstance(vae, AutoencoderKL):
            raise UserError(f"the vae is an {type(vae).__name__}, and latents here are those of an AutoencoderKL")
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
        self.register_to_config(id2label=id2label)
        if transformer is not None and transformer.config.context != "none":
            raise UserError("this pipeline makes pictures of classes; a model with context tokens is called directly")
        names = {int(number): name for number, name in (id2label or {}).items()}  # JSON has made text of the numbers.
        self.classes = Classes(transformer.config.num_embeds_ada_norm, names)
        self._guidance_scale, self._interrupt = 1.0, False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs) -> FiTPipeline:
        """`builtin:NAME`, a model folder of `fitv2 train` or `fitv2 convert` (with `torch_dtype` alone), or what
        diffusers knows, with its own arguments: a saved pipeline's folder or a hub id. Runs no code of the folder.
        """
        name = str(pretrained_model_name_or_path)
        if is_own_model(name):
            parts = {part: kwargs.pop(part) for part in ("scheduler", "vae") if part in kwargs}
            return cls.from_model(load_pretrained(name, own_dtype(kwargs)), **parts)
        if not Path(name).is_dir():
            hub = {option: kwargs.pop(option) for option in HUB_OPTIONS if option in kwargs}
            unwanted = NEVER_READ if "variant" in kwargs else [*NEVER_READ, "*.*.safetensors"]
            name = snapshot_download(name, ignore_patterns=unwanted, **hub)
        if "vae" not in kwargs and (Path(name) / "vae").is_dir() and not kwargs.keys() & PLACED_BY_DIFFUSERS:
            dtype = kwargs.get("torch_dtype") or kwargs.get("dtype") or torch.float32
            dtype = dtype.get("vae", dtype.get("default", torch.float32)) if isinstance(dtype, dict) else dtype
            variant = kwargs.get("variant")
            # As diffusers does for parts that do not have the variant.
            varied = variant is not None and any((Path(name) / "vae").glob(f"*.{variant}.*"))
            options = {"variant": variant} if varied else {}
            kwargs["vae"] = read_network(name, "vae", dtype, **options)
        return super().from_pretrained(name, **kwargs)

    @classmethod
    def load_config(cls, *args, **kwargs) -> dict:
        """What a folder's model_index.json says, but with our class in place of the code that it names for others."""
        config = super().load_config(*args, **kwargs)
        content = config[0] if isinstance(config, tuple) else config
        if "transformer" in content:
            content["_class_name"] = cls.__name__
            content["transformer"] = [FiTTransformer2DModel.__module__, FiTTransformer2DModel.__name__]
        return config

    @classmethod
    def from_model(cls, pretrained: Pretrained, scheduler: SchedulerMixin | None = None, **vae) -> FiTPipeline:
        """A pipeline around a model of our own; vae=...: instead of the one that the model names, None for none."""
        transformer = FiTTransformer2DModel.from_model(pretrained)
        if "vae" not in vae and pretrained.autoencoder is not None:
            vae["vae"] = load_autoencoder(pretrained.autoencoder, dtype=transformer.dtype).network
        names = dict(enumerate(pretrained.class_names)) or None
        return cls(transformer, scheduler or default_scheduler(), id2label=names, **vae)

    def to_model(self, autoencoder: str | None) -> Pretrained:
        """The reverse of `from_model`; autoencoder: where the one of these latents is, if they are not pixels."""
        side = self.transformer.config.sample_size
        names = [self.classes.names.get(number, str(number)) for number in range(self.classes.count)]
        names = names if self.classes.names else []
        return Pretrained(self.transformer.fit, names, [[(side, side, 1)]], autoencoder)

    def save_pretrained(self, save_directory: str | Path, *args, push_to_hub: bool = False, **kwargs) -> None:
        """As diffusers saves, and with the custom code of a hub repository, so that where this package is installed
        `DiffusionPipeline.from_pretrained(it, trust_remote_code=True)` loads the folder or hub id.
        Raises UserError where the transformer has an adapter (LoRA).
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
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float = 2.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_power: float = 0.0,
        guidance_channels: int | None = None,
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
        """Pictures, one per label, each of its own size.

        class_labels: numbers or names; None: one picture of no class. sizes: (height, width) in pixels, one per picture
        or one for all; or height and width for all; default: the model's own. guidance_interval: times in [0, 1] (1 is
        the picture) in which guidance acts. num_inference_steps: 25 by default; none with an adaptive solver.
        guidance_power: above 0 the scale falls to 1 by a cosine of that power.
        guidance_channels: guides only the first channels of a latent (the authors: 3). seeds: one per picture, the
        same picture whatever else is in the batch; or generators, one or one per picture. extrapolation: a name of
        `fitv2.model.rope.EXTRAPOLATIONS` or a RopeScheme. solver: one of this project's own samplers instead of the
        scheduler (a model of noise, as FiT, has only those). latents: packed starting noise (T, C) for the scheduler.
        output_type: "pil", "np", "pt" (stacked where all sizes are equal) or "latent" (a list of (c, h, w)).
        callback_on_step_end(pipeline, step, time, tensors) gets and may replace "latents", packed as (T, C).
        Raises ValueError for what does not fit together, and for a solver of another kind of model.
        """
        config, device = self.transformer.fit.config, self._execution_device
        if solver is None and config.prediction == "epsilon":  # No scheduler of a flow fits it.
            solver = default_solver(config)
        if solver is not None and (callback_on_step_end is not None or latents is not None):
            raise UserError(f"callback_on_step_end and latents go with a scheduler, not with the solver {solver}")
        if solver is None:
            check_scheduler(self.scheduler)
        if output_type not in ("pil", "np", "pt", "latent"):
            raise UserError(f"output_type is 'pil', 'np', 'pt' or 'latent', not {output_type!r}")
        if sizes is not None and not (height is width is None):
            raise UserError("give sizes, or height and width for all, not both")
        if sum(given is not None for given in (seeds, generator, latents)) > 1:
            raise UserError("give seeds, a generator or latents: each of them fixes the starting noise")
        if set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise UserError(f"a callback can have {self._callback_tensor_inputs} alone")
        wishes = self.wishes(class_labels, [(height, width)] if sizes is None else plain(sizes), seeds, generator)
        sampling = Sampling(
            steps=num_inference_steps,
            solver=solver or "euler",
            guidance=guidance_scale,
            interval=guidance_interval,
            power=guidance_power,
            channels=None if guidance_channels is None else guidance_channels * config.patch_size**2,
            rope=self.rope_scheme(extrapolation, attention_scale),
        )
        check_sampling(sampling, config)
        network = self.network(sampling)
        if solver is not None:
            made = generate_with(lambda: network, config, wishes, sampling, device)
        else:
            hw = torch.tensor([wish.size for wish in wishes]) // config.patch_size
            labels = torch.tensor([wish.label for wish in wishes])
            if latents is None:
                latents = ImageNoise([w.seed for w in wishes], hw.prod(1).tolist(), config.token_channels).draw()
            if latents.shape != (shape := (int(hw.prod(1).sum()), config.token_channels)):
                raise UserError(f"latents must be packed starting noise {shape}, not {tuple(latents.shape)}")

            @cache
            def velocity_at(scale: float) -> Velocity:
                return guided(network, config, hw, labels, sampling, device, scale)

            self._guidance_scale = guidance_scale
            x = self.scheduled(velocity_at, latents.float().to(device), sampling.steps, callback_on_step_end)
            made = TokenBatch(x.float(), hw).to_latents(config.patch_size)
            for latent, wish in zip(made, wishes, strict=True):
                check_finite(latent, "the image that the model made", PIPELINE_CURES, f"seed {wish.seed}")
        images = self.finished(made, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def network(self, sampling: Sampling) -> Network:
        """The transformer as samplers see it, called as diffusers calls it, so that its hooks (offloading) run."""

        def network(batch: TokenBatch, t: Tensor, y: Tensor) -> Tensor:
            batch = batch.to(self.transformer.dtype)
            settings = {"timestep": t, "class_labels": y, "rope": sampling.rope, "return_dict": False}
            return self.transformer(batch, **settings)[0].float()

        return network

    @property
    def guidance_scale(self) -> float:
        """Of the call under way; a callback may set `_guidance_scale`."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Network calls of the call under way, guidance not counted."""
        return len(self.scheduler.timesteps)

    @property
    def interrupt(self) -> bool:
        """A callback may set `_interrupt`, which ends the call after its step."""
        return self._interrupt

    def scheduled(
        self, velocity_at: Callable[[float], Velocity], x: Tensor, steps: int, callback: Callable | None
    ) -> Tensor:
        """Integrates with the pipeline's scheduler; velocity_at: guidance scale to velocity."""
        set_steps(self.scheduler, steps, x.device)
        self._interrupt = False
        for i, timestep in enumerate(self.progress_bar(self.scheduler.timesteps)):
            if self.interrupt:
                break
            x = advance(self.scheduler, i, x, velocity_at(self.guidance_scale))
            if callback is not None:
                x = (callback(self, i, timestep, {"latents": x}) or {}).get("latents", x)
        return x

    def wishes(
        self,
        class_labels: int | str | Sequence[int | str] | None,
        sizes: Sequence[tuple[int | None, int | None]],
        seeds: Sequence[int] | None,
        generator: torch.Generator | Sequence[torch.Generator] | None,
    ) -> list[Wish]:
        """One per picture, sizes in latent pixels. Raises ValueError for what is unknown or not one per picture."""
        config, factor = self.transformer.fit.config, self.codec.factor
        labels = self.label_numbers(class_labels)
        sizes = [tuple(sizes)] if is_size(sizes) else sizes
        if wrong := [size for size in sizes if not is_size(size)]:
            raise UserError(f"{wrong[0]!r} is not a size: give (height, width) in whole pixels")
        sizes = list(sizes) * (len(labels) if len(sizes) == 1 else 1)
        if len(sizes) != len(labels):
            raise UserError(
                f"{counted(len(sizes), 'size')} for {counted(len(labels), 'class label')}: give one each, or one for "
                "all"
            )
        seeds = draw_seeds(len(labels), generator) if seeds is None else plain(seeds)
        if not isinstance(seeds, Sequence) or len(seeds) != len(labels):
            number = counted(len(seeds), "seed") if isinstance(seeds, Sequence) else "no list of seeds"
            raise UserError(f"{number} for {counted(len(labels), 'picture')}: give one seed or generator per picture")
        own = self.transformer.config.sample_size * factor
        wishes = []
        for label, size, seed in zip(labels, sizes, seeds, strict=True):
            pixels = tuple(own if side is None else side for side in size)
            check_divisible(pixels, config.patch_size * factor)
            wishes.append(Wish(label, (pixels[0] // factor, pixels[1] // factor), seed))
        return wishes

    def label_numbers(self, class_labels: int | str | Tensor | Sequence | None) -> list[int]:
        """Names and numbers as numbers; the number of classes itself is "no class"."""
        if class_labels is None:
            return [self.classes.count]
        numbers = [self.classes.number(label) for label in flat(class_labels)]
        if not numbers:
            raise UserError("there is no class label: give one per picture, or None for a picture of no class")
        return numbers

    def rope_scheme(self, extrapolation: str | RopeScheme | None, attention_scale: str | None) -> RopeScheme | None:
        """The positions that a call asks for; None: as the model's configuration says."""
        if not isinstance(extrapolation, str | RopeScheme | None):
            raise UserError(f"extrapolation is a name or a RopeScheme, not {extrapolation!r}")
        if isinstance(extrapolation, str):
            return self.transformer.fit.config.rope.named(extrapolation, attention_scale)
        if attention_scale is not None:
            raise UserError('attention_scale belongs to an extrapolation by name, such as "vision-ntk"')
        return extrapolation

    @property
    def codec(self) -> Pixels | KLAutoencoder:
        """Between latents and pictures."""
        return Pixels() if self.vae is None else KLAutoencoder(self.vae, self._execution_device)

    def finished(self, latents: list[Tensor], output_type: str) -> list | Tensor | np.ndarray:
        """Latents as what was asked for; arrays are stacked where all sizes are equal."""
        if output_type == "latent":
            return stacked(latents)
        images = [image.cpu() for image in decode_all(self.codec, latents)]
        if output_type == "pil":
            return [to_image(image) for image in images]
        images = [(image / 2 + 0.5).clamp(0, 1) for image in images]
        return stacked(images if output_type == "pt" else [image.permute(1, 2, 0).numpy() for image in images])

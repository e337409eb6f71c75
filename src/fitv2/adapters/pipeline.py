"""FiT as a pipeline of diffusers: images of many sizes, classes and prompts in one packed batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Self

import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from PIL import Image
from torch import Tensor

from ..checkpoints.model_folder import Pretrained
from ..errors import UserError
from ..finite import check_finite
from ..images.autoencoder import LatentCodec, Pixels, load_autoencoder, network_classes
from ..images.edits import Edit, lay_out, starts_of
from ..images.make_images import decode_all
from ..images.sheets import to_image
from ..messages import check_known
from ..model.config import RopeScheme
from ..sampling.generate import generate, guided_model
from ..sampling.noise import ImageNoise
from ..sampling.sizes import latent_size
from ..sampling.spec import TWO_PASSES, SampleSpec, Sampling, checked_window, default_solver, without
from ..text import TextEncoder, load_text_encoder
from ..tokens import TokenBatch
from .arguments import label_numbers, rope_scheme, sizes_of, specs_of, stacked, texts_of
from .saved_pipeline import SavedPipeline, classes_of
from .schedulers import advance, check_scheduler, default_scheduler, set_steps
from .transformer import FiTTransformer2DModel, HookedModel

# Recommendations that a scheduler has no use for.
OF_SOLVERS = ("solver", "shift", "shift_tokens", "cache_interval")
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
PIPELINE_CURES = "try torch_dtype=torch.float32, a size nearer to those of training, or a lower guidance_scale"


class FiTPipeline(SavedPipeline):
    """Images of classes or prompts, of any sizes, in packed batches.

    Load and use it::

        pipe = FiTPipeline.from_pretrained("builtin:fashion")  # or a folder, or a hub id
        images = pipe(class_labels=["bag", 3], sizes=[(28, 12), (20, 28)], seeds=[1, 2]).images
        images = pipe(prompt=["a red apple", "a cat"], sizes=[(64, 192), (96, 96)]).images  # text-conditioned

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
        text_encoder: Of transformers, for a text-conditioned model.
        tokenizer: Of the text encoder.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components: ClassVar = ["vae", "text_encoder", "tokenizer"]
    _callback_tensor_inputs: ClassVar = ["latents"]

    def __init__(
        self,
        transformer: FiTTransformer2DModel,
        scheduler: SchedulerMixin,
        vae: AutoencoderKL | AutoencoderDC | None = None,
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
        self.classes = classes_of(transformer, id2label)
        self._guidance_scale, self._interrupt = 1.0, False

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
        upscale_from: int | None = None,
        upscale_time: float | None = None,
        window: tuple[int, int] | None = None,
        image: Image.Image | None = None,
        mask_image: Image.Image | None = None,
        strength: float | None = None,
        anchor: str = "center",
        solver: str | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Returns images, each of its own size: as many as there are labels, prompts, sizes or seeds.

        Args:
            class_labels: Numbers or names, one per image or one for all; None means no class.
            sizes: (height, width) in pixels, one per image or one for all; the default is the model's own.
            prompt: One per image or one for all, for a text-conditioned model; None means the empty one.
            negative_prompt: What guidance leads away from, one per image or one for all; None means from no text.
            height, width: The same for all images, instead of `sizes`.
            num_inference_steps: Steps; none with an adaptive solver. This and the guidance have the model's recommended
                values as defaults, else 25 steps and guidance 2 at all times.
            guidance_scale: The scale of classifier-free guidance; 1 means none.
            guidance_interval: Times in [0, 1] (1 is the image) between which guidance acts.
            guidance_power: Above 0, the scale falls to 1; see `fitv2.sampling.guidance.guidance_scale`.
            guidance_channels: Guides only the first channels of a latent (the authors: 3).
            internal_guidance: The scale of guidance by the internal head, for a model that has one; 1 means none.
            internal_interval: Times in [0, 1] between which internal guidance acts.
            seeds: One per image. Up to rounding, an image is the same, whatever else is in the batch.
            generator: One for all or one per image, from which the seeds are drawn, instead of `seeds`.
            extrapolation: A name of `fitv2.model.config.EXTRAPOLATIONS` or a RopeScheme.
            attention_scale: The attention factor of an extrapolation that is given by name.
            upscale_from: Makes images with more tokens than this in two passes: small first, then enlarged and refined.
            upscale_time: The time in (0, 1) at which the second pass begins; later changes less.
            window: (height, width) in pixels; larger images are sampled in overlapping windows of this size.
            image: What all images begin with instead of noise (`fitv2.images.edits.lay_out`); a larger size extends it.
            mask_image: Of the same size, white where the image is to be redrawn.
            strength: How much of the image changes, above 0 to 1.
            anchor: Where the image lies in a larger image: center, left, right, top or bottom.
            solver: One of this package's own solvers instead of the scheduler; FiT, a model of noise, has only those.
                Two passes and an image to begin with need one, and take the default one.
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
        if solver is None and self._needs_a_solver(upscale_from, image):
            solver = default_solver(self.transformer.fit.config)
        if solver is not None and (callback_on_step_end is not None or latents is not None):
            raise UserError(f"callback_on_step_end and latents go with a scheduler, not with the solver {solver}")
        if sum(given is not None for given in (seeds, generator, latents)) > 1:
            raise UserError("give seeds, a generator or latents: each of them fixes the starting noise")
        if set(callback_on_step_end_tensor_inputs or ()) - set(self._callback_tensor_inputs):
            raise UserError(f"a callback can have {self._callback_tensor_inputs} alone")
        if sizes is not None and not (height is width is None):
            raise UserError("give sizes, or height and width for all, not both")
        if image is not None and (upscale_from or upscale_time is not None):
            raise UserError("upscale_from and upscale_time are for images that begin with noise: omit image")
        check_known("output_type", output_type, OUTPUT_TYPES)
        config, codec, text = self.transformer.fit.config, self.codec, self.text
        self._check_parts(codec, text, output_type != "latent" or image is not None)
        wanted = sizes_of(
            (height, width) if sizes is None else sizes, self.transformer.config.sample_size * codec.factor
        )
        edits: list[Edit] = []
        if image is not None:
            channels, unit = 3 if codec.channels else config.in_channels, codec.factor * config.patch_size
            given = [None] if sizes is height is width is None else wanted
            edits = [lay_out(image, channels, unit, size, mask_image, strength, anchor) for size in given]
            wanted = [edit.size for edit in edits]
        elif mask_image is not None or strength is not None or anchor != "center":
            raise UserError("mask_image, strength and anchor are about an image to begin with: give image")
        specs = specs_of(
            label_numbers(self.classes, class_labels),
            texts_of(prompt),
            texts_of(negative_prompt),
            wanted,
            seeds,
            generator,
            codec.factor,
            config.patch_size,
        )
        # A call makes one pass unless it asks for two, so that solvers and schedulers solve the same equation.
        advice = self.config["sampling"] or {}
        recommended = without(advice, *TWO_PASSES)
        sampling = Sampling.of(
            config,
            recommended if solver else without(recommended, *OF_SOLVERS),
            steps=num_inference_steps,
            solver=solver,
            guidance=guidance_scale,
            interval=guidance_interval,
            power=guidance_power,
            channels=None if guidance_channels is None else guidance_channels * config.patch_size**2,
            internal_guidance=internal_guidance,
            internal_interval=internal_interval,
            rope=rope_scheme(config.rope, extrapolation, attention_scale),
            upscale_from=upscale_from,
            upscale_time=upscale_time,
            upscale_side=advice.get("upscale_side") if upscale_from else None,
            window=None if window is None else latent_size(checked_window(window), codec.factor, config.patch_size),
        )
        model = HookedModel(self.transformer, self._execution_device)
        if solver is not None:
            edits *= len(specs) if len(edits) == 1 else 1
            made = generate(model, specs, sampling, None, text, starts_of(edits, codec) if edits else None)
        else:
            made = self._scheduled(model, specs, sampling, latents, callback_on_step_end)
        images = self._finished(made, output_type, edits)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _needs_a_solver(self, upscale_from: int | None, image: Image.Image | None) -> bool:
        """Whether no scheduler makes what is asked for. Raises UserError if one could, but not the pipeline's own."""
        config = self.transformer.fit.config
        if config.prediction == "epsilon" or config.target_blocks or upscale_from or image is not None:
            return True
        check_scheduler(self.scheduler)
        return False

    def _check_parts(self, codec: Pixels | LatentCodec, text: TextEncoder | None, pixels: bool) -> None:
        """Raises UserError if the autoencoder or the text encoder does not suit the transformer.

        pixels: whether pixels are given or wanted, and not latents alone.
        """
        config = self.transformer.fit.config
        latents = f"this model makes latents of {config.in_channels} channels"
        if self.vae is None and config.in_channels not in (1, 3) and pixels:
            raise UserError(f'{latents}: give the pipeline its vae, or output_type="latent" and no image')
        if codec.channels not in (None, config.in_channels):
            raise UserError(f"{latents}, and the vae takes {codec.channels}: give the pipeline the model's own vae")
        if text is not None and config.takes_text and text.channels != config.context_channels:
            raise UserError(
                f"this model takes texts of {config.context_channels} numbers a token, and the text encoder gives "
                f"{text.channels}: give the pipeline the model's own"
            )

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
        assert sampling.steps is not None  # Only an adaptive solver has none.
        set_steps(self.scheduler, sampling.steps, device)
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
        if self.text_encoder is None:
            return None
        return TextEncoder(self.text_encoder, self.tokenizer, "the pipeline's", self._execution_device)

    @property
    def codec(self) -> Pixels | LatentCodec:
        """The decoder of latents."""
        return Pixels() if self.vae is None else LatentCodec(self.vae, self._execution_device)

    def _finished(self, latents: list[Tensor], output_type: str, edits: Sequence[Edit]) -> Any:
        """Returns latents as `output_type` says; arrays are stacked where all sizes are equal."""
        if output_type == "latent":
            return stacked(latents)
        images = [image.cpu() for image in decode_all(self.codec, latents)]
        images = [edit.finish(image) for edit, image in zip(edits, images, strict=True)] if edits else images
        if output_type == "pil":
            return [to_image(image) for image in images]
        images = [(image / 2 + 0.5).clamp(0, 1) for image in images]
        return stacked(images if output_type == "pt" else [image.permute(1, 2, 0).numpy() for image in images])

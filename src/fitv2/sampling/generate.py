"""Images of all sizes, classes and seeds from one model, in packed batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from ..diffusion.schedule import ddim_steps, ddpm_steps, linear_schedule
from ..finite import check_finite
from ..flow.path import shift_by_size
from ..model.config import NetworkConfig
from ..tokens import Denoiser, TokenBatch, pack_context, upload
from .cache import BlockCache
from .ddpm import sample_ddim, sample_ddpm
from .editing import Editing, Start, check_starts, enlarged
from .guidance import GuidedModel
from .noise import ImageNoise
from .ode import SOLVERS, time_grid
from .sde import METHOD_OF, sample_sde, sde_grid
from .solver_names import ADAPTIVE, model_calls
from .spec import SampleSpec, Sampling, check_sampling, check_spec, check_texts, first_size
from .windows import Guided, WindowedModel, window_area

# The most tokens of a batch, before guidance doubles them, on a CPU and elsewhere: enough to keep the device busy, few
# enough that images are finished now and then. A longer image is a batch of its own.
MAX_TOKENS = {"cpu": 1024, "other": 8192}
# Gets the index of a request and its latent.
OnImage = Callable[[int, Tensor], None]
# Texts to their context, a tensor (tokens, channels) each: a `fitv2.text.TextEncoder`.
EncodeTexts = Callable[[Sequence[str]], list[Tensor]]


class Model(Denoiser, Protocol):
    """The interface of a model, such as `FiT` and `DiT`: a `Denoiser` that also takes rope and cache."""

    @property
    def config(self) -> NetworkConfig: ...

    @property
    def device(self) -> torch.device: ...


def generate(
    model: Model,
    specs: Sequence[SampleSpec],
    sampling: Sampling,
    on_image: OnImage | None = None,
    text: EncodeTexts | None = None,
    starts: Sequence[Start] | None = None,
) -> list[Tensor]:
    """Returns one latent (c, height, width) in float32 on the CPU per request, in the order of the requests.

    An image depends on its own request alone, not on the others. Runs in inference mode, except if the caller has
    already disabled gradients: FSDP2 keeps the tensors that it gathers, and inference tensors could not be trained.

    Args:
        model: The model, on its device.
        specs: The requests.
        sampling: How to integrate and guide.
        on_image: Gets each image as soon as its batch is finished.
        text: The text encoder, for a model of text.
        starts: The image of each request that sampling begins with, instead of noise; `upscale_from` is for noise.

    Raises:
        UserError: A size that the patch does not divide or that is not the model's only one, a label out of range, or
            a setting for another kind of model.
        NotFinite: The model made NaN or infinity.
    """
    config, device = model.config, model.device
    check_sampling(sampling, config)
    for spec in specs:  # Before the first batch is made.
        check_spec(spec, config)
    if starts is not None:
        check_starts(starts, specs, sampling)
    elif sampling.upscale_from is not None:
        return _in_two_passes(model, specs, sampling, on_image, text)
    latents: dict[int, Tensor] = {}
    tokens = [computed_tokens(spec, sampling, config.patch_size) for spec in specs]
    # Images of one batch take the same number of steps and, where the cache counts calls, have the same times.
    alike = [0] * len(specs) if starts is None else [steps_from(start.time, sampling.steps or 1) for start in starts]
    if sampling.cache_interval > 1 and sampling.shift_tokens is not None:
        alike = list(zip(alike, (spec.tokens(config.patch_size) for spec in specs), strict=True))
    # inference_mode(False) would switch gradients on again.
    with torch.inference_mode() if torch.is_grad_enabled() else nullcontext():
        for chosen in batches(tokens, max_tokens(sampling, device), alike):
            cache = None if sampling.cache_interval == 1 else BlockCache(sampling.cache_interval)
            denoiser = partial(model, rope=sampling.rope, cache=cache)
            together = [specs[i] for i in chosen]
            guided = guided_model(denoiser, config, together, sampling, device, text)
            begun = None if starts is None else [starts[i] for i in chosen]
            x, hw = sample_batch(guided, [spec.seed for spec in together], begun)
            made = TokenBatch(x.float().cpu(), hw).to_latents(config.patch_size)
            for i, latent in zip(chosen, made, strict=True):
                check_finite(latent, "the image that the model made", detail=f"seed {specs[i].seed}")
                latents[i] = latent
                if on_image is not None:
                    on_image(i, latent)
    return [latents[i] for i in range(len(specs))]


def _in_two_passes(
    model: Model,
    specs: Sequence[SampleSpec],
    sampling: Sampling,
    on_image: OnImage | None,
    text: EncodeTexts | None,
) -> list[Tensor]:
    """Makes images small first where `upscale_from` says so, and then from these in their own sizes."""
    once = sampling.in_one_pass()
    small = [replace(spec, size=first_size(spec.size, sampling, model.config.patch_size)) for spec in specs]
    large = [i for i, spec in enumerate(specs) if small[i] != spec]

    def finished(i: int, latent: Tensor) -> None:
        if on_image is not None and small[i] == specs[i]:
            on_image(i, latent)

    def enlarged_too(n: int, latent: Tensor) -> None:
        if on_image is not None:
            on_image(large[n], latent)

    latents = generate(model, small, once, finished, text)
    starts = [Start(enlarged(latents[i], specs[i].size), sampling.upscale_time) for i in large]
    second = generate(model, [specs[i] for i in large], once, enlarged_too, text, starts)
    for i, latent in zip(large, second, strict=True):
        latents[i] = latent
    return latents


def sample_batch(model: Guided, seeds: Sequence[int], starts: Sequence[Start] | None = None) -> tuple[Tensor, Tensor]:
    """Samples the images of a guided model together as one packed batch, which guidance doubles.

    Args:
        model: Knows the images, and how they are sampled.
        seeds: One per image.
        starts: The image that each sampling begins with, instead of noise. Only its share of the steps is left, which
            must be the same for all.

    Returns:
        The tokens (T, C) on the device, and hw (B, 2), the sizes of the images in patches.
    """
    sampling, device, hw = model.sampling, model.device, model.batch.hw
    noise = ImageNoise(list(seeds), hw.prod(1).tolist(), model.config.token_channels)

    def draw() -> Tensor:
        return upload(noise.draw(), device)

    x, solver, steps, shift = draw(), sampling.solver, sampling.steps or 1, sampling.shift
    if sampling.shift_tokens is not None:
        shift = shift * shift_by_size(hw.prod(1), sampling.shift_tokens)
    if starts is not None:
        # Not the first numbers of the seed: what it made of them before would be drawn again, whatever may change.
        editing = Editing(model, starts, draw())
        times = editing.grid(time_grid(steps_from(starts[0].time, steps), shift))
        x = editing.finish(SOLVERS[solver](editing.velocity, editing.begin(), times, expand=model.expand))
    elif solver == "ddim":
        x = sample_ddim(model, x, linear_schedule().respaced(ddim_steps(steps)))
    elif solver == "ddpm":
        x = sample_ddpm(model, x, linear_schedule().respaced(ddpm_steps(steps)), draw)
    elif solver in METHOD_OF:
        times = sde_grid(steps, shift=shift)
        x = sample_sde(model, x, times, draw, expand=model.expand, method=METHOD_OF[solver])
    else:
        x = SOLVERS[solver](model, x, time_grid(steps, shift), expand=model.expand)
    return x, hw


def steps_from(time: float, steps: int) -> int:
    """Returns how many of the steps are left of a sampling that begins at a time."""
    return max(round((1 - time) * steps), 1)


def calls_from(time: float, sampling: Sampling) -> int | None:
    """Returns the model calls of a sampling that begins with an image at a time; None if the solver decides."""
    return None if sampling.steps is None else model_calls(sampling.solver, steps_from(time, sampling.steps))


def guided_model(
    denoiser: Denoiser,
    config: NetworkConfig,
    specs: Sequence[SampleSpec],
    sampling: Sampling,
    device: torch.device,
    text: EncodeTexts | None = None,
) -> Guided:
    """Returns the guided model of a batch of requests, in their order. Raises UserError as `generate` does."""
    check_texts(config, text)
    for spec in specs:
        check_spec(spec, config)
    prompts = [spec.prompt for spec in specs], [spec.negative_prompt for spec in specs]
    encoded = [] if text is None else [text(some) for some in prompts]

    def guide(hw: Tensor, images: Sequence[int]) -> GuidedModel:
        labels = torch.tensor([specs[i].label for i in images])
        texts = [pack_context([some[i] for i in images]).to(device) for some in encoded]
        return GuidedModel(denoiser, config, hw, labels, sampling, device, *texts)

    hw, window = torch.tensor([spec.size for spec in specs]) // config.patch_size, sampling.window
    if window is None or not any(is_cut(spec, window) for spec in specs):
        return guide(hw, range(len(specs)))
    most = window[0] // config.patch_size, window[1] // config.patch_size
    return WindowedModel(guide, hw, most, device)


def is_cut(spec: SampleSpec, window: tuple[int, int]) -> bool:
    """Whether an image is larger than a window of that size in latent pixels."""
    return spec.size[0] > window[0] or spec.size[1] > window[1]


def computed_tokens(spec: SampleSpec, sampling: Sampling, patch_size: int) -> int:
    """Returns the tokens that a model call computes for an image: those of its windows if it is cut."""
    if sampling.window is None:
        return spec.tokens(patch_size)
    return window_area(spec.size, sampling.window) // patch_size**2


def max_tokens(sampling: Sampling, device: torch.device) -> int:
    """Returns the most tokens of a batch of several images; a longer image is a batch of its own."""
    # An adaptive solver takes its steps by the error over the whole batch: with 1 token, each image is sampled alone.
    return 1 if sampling.solver in ADAPTIVE else MAX_TOKENS["cpu" if device.type == "cpu" else "other"]


def batches(tokens: Sequence[int], most: int, alike: Sequence[Any] | None = None) -> Iterator[list[int]]:
    """Yields indices of images of these token counts, short ones first, in groups of at most `most` tokens or one.

    alike: for each image a number, or several; only images of equal ones share a group.
    """
    group: list[int] = []
    held, kind = 0, alike or [0] * len(tokens)
    for i in sorted(range(len(tokens)), key=lambda i: (kind[i], tokens[i])):
        if group and (held + tokens[i] > most or kind[i] != kind[group[0]]):
            yield group
            group, held = [], 0
        group.append(i)
        held += tokens[i]
    if group:
        yield group

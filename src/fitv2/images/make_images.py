"""From requests to images: latents are generated and decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from ..sampling.generate import EncodeTexts, Model, generate
from ..sampling.spec import SampleSpec, Sampling
from .autoencoder import LARGEST_UNTILED, LatentCodec, Pixels
from .edits import Edit, starts_of
from .sheets import to_image


def make_images(
    model: Model,
    codec: Pixels | LatentCodec,
    specs: Sequence[SampleSpec],
    sampling: Sampling,
    on_image: Callable[[int, Image.Image], None] | None = None,
    text: EncodeTexts | None = None,
    edits: Sequence[Edit] | None = None,
) -> list[Image.Image]:
    """Generates latents and decodes them; returns an 8-bit image per request, in the order of the requests.

    With `on_image`, each image is decoded as soon as its latent is there, and passed with the index of its request.
    Without, decoding begins when all latents are there, so that a failure leaves no process of a sharded model waiting.
    text: the text encoder, for a model of text. edits: the image that each request begins with, instead of noise.

    Raises errors as `generate` does, and NotFinite where the autoencoder makes NaN or infinity.
    """
    starts = None if edits is None else starts_of(edits, codec)

    def finished(index: int, pixels: Tensor) -> Image.Image:
        return to_image(pixels if edits is None else edits[index].finish(pixels))

    if on_image is None:
        latents = generate(model, specs, sampling, None, text, starts)
        return [finished(*one) for one in enumerate(decode_all(codec, latents))]
    made: dict[int, Image.Image] = {}

    def keep(index: int, pixels: Tensor) -> None:
        made[index] = finished(index, pixels)
        on_image(index, made[index])

    with Decoding(codec, keep) as decoding:
        generate(model, specs, sampling, decoding.add, text, starts)
    return [made[index] for index in range(len(specs))]


def decode_all(codec: Pixels | LatentCodec, latents: Sequence[Tensor]) -> list[Tensor]:
    """Decodes latents (c, h, w) to images, in their order."""
    images: dict[int, Tensor] = {}
    with Decoding(codec, images.__setitem__) as decoding:
        for number, latent in enumerate(latents):
            decoding.add(number, latent)
    return [images[number] for number in range(len(latents))]


class Decoding:
    """Decodes latents one after another: on an accelerator in batches of one size, on a CPU one by one.

    A context manager; at its end all latents are decoded. done: is called with the number of a latent and its image,
    (3, H, W).
    """

    def __init__(self, codec: Pixels | LatentCodec, done: Callable[[int, Tensor], None]) -> None:
        self.codec, self.done = codec, done
        self.waiting: list[tuple[int, Tensor]] = []

    def __enter__(self) -> Decoding:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.flush()

    def add(self, number: int, latent: Tensor) -> None:
        if isinstance(self.codec, Pixels) or torch.device(self.codec.device).type == "cpu":
            self.done(number, self.codec.decode(latent))
            return
        pixels = latent.shape[1] * latent.shape[2] * self.codec.factor**2
        full = (len(self.waiting) + 1) * pixels > LARGEST_UNTILED
        if self.waiting and (full or self.waiting[0][1].shape != latent.shape):
            self.flush()
        self.waiting.append((number, latent))

    def flush(self) -> None:
        if self.waiting:
            numbers, latents = zip(*self.waiting, strict=True)
            self.waiting.clear()
            for number, image in zip(numbers, self.codec.decode_batch(torch.stack(latents)), strict=True):
                self.done(number, image)

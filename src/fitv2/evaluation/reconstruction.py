"""How well an autoencoder gives images back: PSNR, SSIM and a distance of features, each image at its own size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.signal.windows import gaussian

from ..data.preprocessing import to_array, to_tensor
from ..images.autoencoder import LatentCodec
from ..images.sheets import to_image
from .extractors import Extractor, extract
from .metrics import RunningStatistics, frechet_distance

# Of SSIM: the side and the standard deviation of the Gaussian window, and the constants.
WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03
# Of equal images, whose ratio of signal and noise would be infinite.
MOST_DECIBELS = 100.0
# Images that are kept in memory with their reconstructions.
BLOCK = 32


def reconstruct(codec: LatentCodec, image: Image.Image) -> Image.Image:
    """Returns what is left of an RGB image after encoding, to the mean of its latent, and decoding; of the same size.

    Where its sides are no multiples of the factor, its edges are continued before, and cut off after.
    """
    pixels = to_tensor(to_array(image))
    height, width = pixels.shape[1:]
    padding = 0, -width % codec.factor, 0, -height % codec.factor
    mean, _ = codec.encode(F.pad(pixels[None], padding, mode="replicate"))
    return to_image(codec.decode(mean[0])[:, :height, :width])


def score_reconstructions(
    codec: LatentCodec,
    images: Iterator[Image.Image],
    extractor: Extractor,
    done: Callable[[int], Any],
    on_pair: Callable[[Image.Image, Image.Image], None] | None = None,
) -> dict[str, Any]:
    """Returns the number of RGB images of any sizes, their mean PSNR in decibels and SSIM, and the distance.

    That is the Fréchet distance of the features of both sets ("fd"), None for a single image. It depends on their
    number: it is only comparable between equal sets.

    done: is called with the number of images just finished. on_pair: gets each image with its reconstruction.
    """
    psnr, ssim = [], []
    statistics = RunningStatistics(), RunningStatistics()
    while block := list(islice(images, BLOCK)):
        made = []
        for image in block:
            made.append(reconstruct(codec, image))
            pair = np.asarray(image), np.asarray(made[-1])
            psnr.append(peak_signal_to_noise(*pair))
            ssim.append(structural_similarity(*pair))
            if on_pair is not None:
                on_pair(image, made[-1])
            done(1)
        for running, seen in zip(statistics, (block, made), strict=True):
            for features in extract(extractor, seen, lambda _: None):
                running.add(features.pooled)
    several = len(psnr) > 1
    distance = frechet_distance(statistics[0].result(), statistics[1].result()) if several else None
    return {"images": len(psnr), "psnr": float(np.mean(psnr)), "ssim": float(np.mean(ssim)), "fd": distance}


def peak_signal_to_noise(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the PSNR of two uint8 images of one shape, in decibels; 100 at most, for equal images."""
    error = float(np.square(a.astype(np.float64) - b).mean())
    return MOST_DECIBELS if error == 0 else min(10 * np.log10(255**2 / error), MOST_DECIBELS)


def structural_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the SSIM of two uint8 images (h, w, 3), in [-1, 1], the mean over places and colours.

    As by Wang et al. (IEEE Transactions on Image Processing 13, 2004, Eq. 13). The Gaussian window lies within the
    image; of a smaller image it is cut to the image's sides.
    """
    x, y = (torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1)[:, None] for image in (a, b))
    windows = [gaussian(min(WINDOW, side), std=SIGMA, dtype=torch.float64) for side in x.shape[2:]]
    windows = [weights / weights.sum() for weights in windows]

    def mean(values: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(values, windows[0][None, None, :, None]), windows[1][None, None, None])

    mean_x, mean_y = mean(x), mean(y)
    variance_x, variance_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = (K1 * 255) ** 2, (K2 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float((luminance * (2 * covariance + c2) / (variance_x + variance_y + c2)).mean())

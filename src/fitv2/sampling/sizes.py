"""Sizes of images and latents, (height, width): what patches divide, what a number of tokens allows."""

from __future__ import annotations

import math

from ..errors import UserError


def check_divisible(size: tuple[int, int], unit: int) -> None:
    """Raises UserError, naming the nearest size, if a side is not a multiple of `unit`."""
    if min(size) < 1 or any(side % unit for side in size):
        nearest = "x".join(map(str, scaled_size(size, 1.0, unit)))
        raise UserError(f"{size[0]}x{size[1]} is not divisible by the patch of {unit}; the nearest is {nearest}")


def latent_size(size: tuple[int, int], factor: int, patch_size: int) -> tuple[int, int]:
    """Returns a size of pixels in latent pixels. Raises UserError if patches do not divide it."""
    check_divisible(size, factor * patch_size)
    return size[0] // factor, size[1] // factor


def size_within(size: tuple[int, int], most: int, patch_size: int, longest: int | None = None) -> tuple[int, int]:
    """Returns the size, or one of nearly its aspect with at most `most` tokens and no side above `longest` patches."""
    short, long = sorted(side // patch_size for side in size)
    scale = min(math.sqrt(most / (short * long)), (longest or long) / long)
    if scale >= 1:
        return size
    short = min(max(round(short * scale), 1), most)
    long = max(min(round(long * scale), most // short, longest or long), 1)
    rows, columns = (short, long) if size[0] <= size[1] else (long, short)
    return rows * patch_size, columns * patch_size


def scaled_size(size: tuple[int, int], scale: float, unit: int) -> tuple[int, int]:
    """Returns both sides times `scale`, each rounded to a multiple of `unit` that is at least one."""
    height, width = (max(round(side * scale / unit), 1) * unit for side in size)
    return height, width

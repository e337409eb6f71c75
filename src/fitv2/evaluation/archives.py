"""Pictures in one .npz file as ADM's evaluator takes them, `arr_0` (N, H, W, 3) uint8, read and written in a stream.

Fifty thousand pictures of 256x256 are 9.8 GB, of which never more than one is in memory here.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from ..atomic import write_file
from ..errors import UserError

PICTURES = "arr_0"


def read_shape(path: Path) -> tuple[int, int, int, int]:
    """(N, H, W, C) of the pictures. Raises ValueError for any other content, naming the file."""
    with opened(path) as (_, shape):
        return shape


def read_pictures(path: Path, indices: Iterable[int]) -> Iterator[Image.Image]:
    """Those pictures, by ascending index, grey or RGB. Raises ValueError for a damaged file."""
    with opened(path) as (file, (_, height, width, channels)):
        length, at = height * width * channels, 0
        for index in indices:
            for _ in range(index - at):
                file.read(length)
            content, at = file.read(length), index + 1
            if len(content) < length:
                raise UserError(f"{path} ends before its pictures do: copy or make it again")
            pixels = np.frombuffer(content, np.uint8).reshape(height, width, channels)
            yield Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)


def write_pictures(path: Path, pictures: Iterable[Image.Image], number: int, size: tuple[int, int]) -> None:
    """A whole file or none; grey pictures become RGB, which is all that ADM's evaluator takes."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (number, *size, 3)}

    def write(draft: Path) -> None:
        with zipfile.ZipFile(draft, "w") as archive, archive.open(f"{PICTURES}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for picture in pictures:
                file.write(np.asarray(picture.convert("RGB")).tobytes())

    write_file(path, write)


@contextmanager
def opened(path: Path) -> Iterator[tuple[IO[bytes], tuple[int, int, int, int]]]:
    """The array's bytes, and its shape."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{PICTURES}.npy") as file:
            yield file, shape_of(file, path)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        raise UserError(f"{path} is no archive of pictures ({PICTURES}), or damaged: {error}") from None


def shape_of(file: IO[bytes], path: Path) -> tuple[int, int, int, int]:
    """What the array's header says."""
    try:
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = readers[np.lib.format.read_magic(file)](file)
    except ValueError as error:
        raise UserError(f"{path} holds an array that cannot be read: {error}") from None
    if len(shape) != 4 or shape[3] not in (1, 3) or dtype != np.uint8 or fortran or not all(shape):
        raise UserError(f"{PICTURES} of {path} is {dtype} {shape}, not uint8 (N, H, W, 3)")
    return shape

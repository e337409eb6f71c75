"""Folders of image files for the tests of data: good ones of all shapes, and every kind of bad one."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from fitv2.data.folder import ImageFolder
from image_files import chunk, saved


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def claims(width: int, height: int) -> bytes:
    """A PNG whose header claims this size and whose data are a few bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def bad_files() -> dict[str, tuple[bytes, str]]:
    """Name to content and the kind of the reason why it is refused."""
    whole = saved(noise(40, 30), "JPEG")
    flipped = bytearray(saved(noise(40, 30)))
    flipped[len(flipped) // 2] ^= 0xFF
    return {
        "empty.png": (b"", "empty file"),
        "page.jpg": (b"<html>404</html>", "not an image"),
        "half.jpg": (whole[: len(whole) // 2], "truncated or damaged"),
        "flipped.png": (bytes(flipped), "truncated or damaged"),
        "huge.png": (claims(60_000, 60_000), "too large"),
        "float.tiff": (saved(Image.fromarray(np.full((9, 9), 0.5, np.float32)), "TIFF"), "not supported"),
        "notes.txt": (b"a note", "ignored extension"),
        "image.txt": (whole, "ignored extension"),
        "clip.mp4": (b"\0\0\0\x18ftyp", "ignored extension"),
        "README": (b"images", "ignored extension"),
        ".hidden.png": (whole, "hidden"),
    }


def good_files(number: int, seed: int = 0) -> dict[str, bytes]:
    """Images of two classes, in many sizes and formats."""
    rng = np.random.default_rng(seed)
    kinds = ("PNG", "JPEG", "WEBP")
    files = {}
    for i in range(number):
        height, width = rng.integers(16, 70, 2).tolist()
        kind = kinds[i % 3]
        files[f"{('cat', 'dog')[i % 2]}/{i:03}.{kind.lower()}"] = saved(noise(height, width, seed * 1000 + i), kind)
    return files


def write_files(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_tar(path: Path, members: dict[str, bytes | None], mode: Literal["w", "w:gz"] = "w") -> Path:
    """None is a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.type, member.size = (tarfile.DIRTYPE, 0) if content is None else (tarfile.REGTYPE, len(content))
            tar.addfile(member, io.BytesIO(content or b""))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder by their names in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def save_image(path, height, width):
    """A gradient along both axes, so that mirrored, rotated and cropped images differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[:height, :width]
    red, green = rows * 255 // max(height - 1, 1), columns * 255 // max(width - 1, 1)
    Image.fromarray(np.stack([red, green, 255 - green], axis=2).astype(np.uint8)).save(path)


def open_folder(root, max_tokens=16, patch=4, **options) -> ImageFolder:
    return ImageFolder(root, max_tokens, patch, **options)


def taken(source) -> dict[str, tuple[int, bytes]]:
    """Id to label and bytes of every item that is not refused."""
    items = enumerate(source.items)
    return {item.id: (item.label, source.read(index)) for index, item in items if item.refused is None}


def refused(source) -> dict[str, str]:
    return {item.id: item.refused for item in source.items if item.refused is not None}


def labels_of(source) -> dict[str, str | None]:
    return {item.id: source.class_names[item.label] for item in source.items if item.refused is None}

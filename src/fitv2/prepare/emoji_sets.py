"""The sets of drawings that `fitv2 emoji` fetches: packages of npm, each in one version with one content.

emoji-sets.csv has a row per set, with the attributes of `DrawingSet`.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Package:
    """A package of npm. sha256: of its tarball."""

    package: str
    version: str
    sha256: str

    @property
    def tarball(self) -> str:
        """The name that npm gives to the tarball."""
        return f"{self.package.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


@dataclass(frozen=True)
class DrawingSet(Package):
    """A set of drawings: vectors by their names (Iconify's icons.json), or images by their code points.

    Attributes:
        name: In ids and file names.
        title, artist, url, licence: For the attribution; the licence by its SPDX name.
        style: How the drawings look, for captions.
        images: The folder of images in the package; empty for vectors.
    """

    name: str
    title: str
    artist: str
    url: str
    licence: str
    style: str
    images: str


# Names, groups and other words for each code point.
EMOJIBASE = Package("emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a")
# Sets under share-alike licences (OpenMoji, the first EmojiOne) are left out: they would bind a model that ships.
TABLE = files("fitv2.prepare").joinpath("emoji-sets.csv").read_text(encoding="utf-8")
SETS = tuple(DrawingSet(**row) for row in csv.DictReader(TABLE.splitlines()))
# Licences whose drawings may ship with the package.
PERMISSIVE = {"Apache-2.0", "MIT"}
# Packages whose chars.json tells which code point an Iconify name stands for.
NAMING = ("noto", "twemoji", "fluent-flat")

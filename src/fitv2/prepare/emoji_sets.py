"""The sets of drawings that `fitv2 emoji` fetches: packages of npm, each in one version with one content."""

from __future__ import annotations

from dataclasses import dataclass


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
        images: The folder of images in the package; None for vectors.
    """

    name: str
    title: str
    artist: str
    url: str
    licence: str
    style: str
    images: str | None = None


# Names, groups and other words for each code point.
EMOJIBASE = Package("emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a")
GOOGLE = "Google Inc", "https://github.com/googlefonts/noto-emoji", "Apache-2.0"
MICROSOFT = "Microsoft Corporation", "https://github.com/microsoft/fluentui-emoji", "MIT"
# Sets under share-alike licences (OpenMoji, the first EmojiOne) are left out: they would bind a model that ships.
SETS = (
    DrawingSet(
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "noto",
        "Noto Emoji",
        *GOOGLE,
        style="shaded",
    ),
    DrawingSet(
        "@iconify-json/noto-v1",
        "1.2.5",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        "noto-v1",
        "Noto Emoji, first version",
        *GOOGLE,
        style="rounded",
    ),
    DrawingSet(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "fluent-flat",
        "Fluent Emoji, flat",
        *MICROSOFT,
        style="flat",
    ),
    DrawingSet(
        "@iconify-json/fluent-emoji",
        "1.2.7",
        "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
        "fluent",
        "Fluent Emoji, with gradients",
        *MICROSOFT,
        style="glossy",
    ),
    DrawingSet(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "fluent-3d",
        "Fluent Emoji, 3D",
        *MICROSOFT,
        style="3D",
        images="assets",
    ),
    DrawingSet(
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "twemoji",
        "Twemoji",
        "Twitter, Inc and other contributors",
        "https://github.com/jdecked/twemoji",
        "CC-BY-4.0",
        style="simple",
    ),
    DrawingSet(
        "@iconify-json/emojione",
        "1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "emojione",
        "Emoji One 2.3",
        "Emoji One, EmojiTwo",
        "https://github.com/EmojiTwo/emojitwo",
        "CC-BY-4.0",
        style="soft",
    ),
    DrawingSet(
        "@iconify-json/fxemoji",
        "1.2.2",
        "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        "fxemoji",
        "Firefox OS Emoji",
        "Mozilla",
        "https://github.com/mozilla/fxemoji",
        "Apache-2.0",
        style="paper",
    ),
    DrawingSet(
        "@iconify-json/streamline-emojis",
        "1.2.4",
        "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
        "streamline",
        "Streamline Emojis",
        "Streamline",
        "https://github.com/webalys-hq/streamline-vectors",
        "CC-BY-4.0",
        style="outlined",
    ),
)
# Licences whose drawings may ship with the package.
PERMISSIVE = {"Apache-2.0", "MIT"}
# Packages whose chars.json tells which code point an Iconify name stands for.
NAMING = ("noto", "twemoji", "fluent-flat")

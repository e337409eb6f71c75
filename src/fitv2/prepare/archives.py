"""WebDataset archives: images as KEY.jpg (or another such extension), their labels in KEY.cls or KEY.json."""

from __future__ import annotations

import json
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import NamedTuple

from ..data.contents import Labels
from ..data.labelling import WHOLE, Item, labelled
from ..data.listing import listed
from ..data.tables import label_text, labelling_key
from ..errors import UserError
from ..messages import counted, shortened
from .items import Source, check_length

LABEL_EXTENSIONS = (".cls", ".json")
MOST_LABEL_BYTES = 1 << 20
# After the last member: two blocks mark the end, and fill a record.
MOST_ZEROS = tarfile.RECORDSIZE + 2 * tarfile.BLOCKSIZE
# The first bytes of compressed archives, in which members cannot be read one by one.
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}


class Member(NamedTuple):
    """A file in an archive, or a fault of the archive itself.

    Attributes:
        name: ARCHIVE/path, or the archive alone.
        start, length: The place of its content, in bytes.
        refused: Why it is not used.
    """

    archive: Path
    name: str
    start: int = 0
    length: int = 0
    refused: str | None = None

    @property
    def path(self) -> PurePosixPath:
        return PurePosixPath(normpath(self.name))

    @property
    def is_label(self) -> bool:
        return self.name.lower().endswith(LABEL_EXTENSIONS)

    @property
    def stem(self) -> tuple[Path, PurePosixPath]:
        """The name without its last extension."""
        return self.archive, self.path.with_suffix("")

    @property
    def key(self) -> tuple[Path, PurePosixPath]:
        """WebDataset's key: the name up to the first dot of the file's own name."""
        return self.archive, self.path.parent / self.path.name.partition(".")[0]

    def read(self) -> bytes:
        check_length(self.length)
        with self.archive.open("rb") as file:
            file.seek(self.start)
            content = file.read(self.length)
        if len(content) < self.length:
            raise OSError(None, "the archive ends within it")
        return content


class ArchiveSource(Source):
    """The members of uncompressed tar archives, one archive after another in the order given, read where they lie."""

    def __init__(self, archives: Sequence[Path], labels: Labels = "auto") -> None:
        found = [member for archive in archives for member in without_replaced(list(members(archive)))]
        self.members = [member for member in found if member.refused or not member.is_label]
        images = [member for member in self.members if not member.refused]
        self.notes: list[str] = []
        texts = [None] * len(images) if labels == "none" else self._labels(images, found)
        items, self.class_names = labelled([m.name for m in images], texts, shortened([*map(str, archives)], 1))
        used = iter(items)
        self.items = [Item(m.name, refused=m.refused) if m.refused else next(used) for m in self.members]

    def read(self, index: int) -> bytes:
        return self.members[index].read()

    def _labels(self, images: Sequence[Member], found: Sequence[Member]) -> list[str | None]:
        """Returns the label of each image: of the member with the same stem, or else with the same key."""
        stems = {image.stem for image in images}
        of_stem, of_key, without = defaultdict(dict), defaultdict(dict), Counter()
        for member in found:
            if member.refused or not member.is_label:
                continue
            label = read_label(member)
            if label is None:
                without[member.path.suffix.lower()] += 1
                continue
            of_stem[member.stem][member.name] = label
            if member.stem == member.key or member.stem not in stems:
                of_key[member.key][member.name] = label
        self.notes += [f"{counted(number, f'{kind} member')} without a label in it" for kind, number in without.items()]
        return [one_label(image.name, of_stem.get(image.stem) or of_key.get(image.key, {})) for image in images]


def one_label(image: str, labels: dict[str, str]) -> str | None:
    """Returns the label of an image from the members that have one; .cls comes before .json.

    Raises UserError for different ids or different names; an id beside a name is no contradiction.
    """
    ids = {label for label in labels.values() if WHOLE.fullmatch(label)}
    if len(ids) > 1 or len({*labels.values()} - ids) > 1:
        told = " and ".join(f"{label} ({name})" for name, label in sorted(labels.items()))
        raise UserError(f"{image} has several labels, {told}: give it one, or use --labels none")
    return next((labels[name] for name in sorted(labels)), None)


def without_replaced(found: list[Member]) -> Iterator[Member]:
    """Refuses all but the last of several members of one name: unpacking would leave only that one."""
    last = {member.path: index for index, member in enumerate(found) if not member.refused}
    for index, member in enumerate(found):
        replaced = not member.refused and last[member.path] != index
        yield member._replace(refused="replaced by a later member of this name") if replaced else member


def members(archive: Path) -> Iterator[Member]:
    """Yields every file of an archive in order, and each place where it is damaged.

    Archives that were joined are read to the end of the last one. tarfile ends silently where a header is missing or
    damaged, so the end of the last member is compared with the file.
    """
    size, start = archive.stat().st_size, 0
    if not size:
        yield Member(archive, archive.name, refused="empty file")
    with archive.open("rb") as file:
        begin = file.read(6)
        if kind := next((kind for mark, kind in COMPRESSED.items() if begin.startswith(mark)), None):
            raise UserError(f"{archive} is compressed ({kind}), and its members cannot be read: unpack it first")
        while start < size:
            end = start
            with suppress(tarfile.TarError, EOFError, ValueError):
                file.seek(start)
                tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - the file is closed by its own block.
                for info in tar:
                    end = tar.offset
                    name, kind = f"{archive.name}/{info.name}", listed(info.name)
                    if info.isreg() and (kind.refused is None or kind.kind in LABEL_EXTENSIONS):
                        yield Member(archive, name, info.offset_data, info.size)
                    elif not info.isdir():
                        yield Member(archive, name, refused=kind.refused if info.isreg() else "not a file")
            start = file.seek(end)
            while (block := file.read(tarfile.BLOCKSIZE)) and not any(block):
                start += len(block)
            if start == end or start - end > MOST_ZEROS:
                lost = f"at byte {end} of {size}; members may be missing there"
                yield Member(archive, archive.name, refused=f"truncated or damaged: {lost}")
            if start == end:
                return


def read_label(member: Member) -> str | None:
    """Returns the label in a .cls or .json member; None if it holds none."""
    try:
        if member.length > MOST_LABEL_BYTES:
            return None
        content = member.read()
        if member.name.lower().endswith(".cls"):
            # Bytes that are not UTF-8 stay in a label, as in the labels of lists.
            text = content.decode("utf-8-sig", "surrogateescape").strip()
            return None if "\0" in text else text or None
        content = json.loads(content.decode("utf-8-sig"))
        key = labelling_key(list(content)) if isinstance(content, dict) else None
        return label_text(content.get(key) if isinstance(content, dict) else content)
    except (OSError, ValueError):
        return None

"""Data sets of Hugging Face, by folder or hub id, through the package `datasets`, which is optional."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data.contents import Labels
from ..data.labelling import UNLABELLED, Item, labelled, refuse_unlabelled
from ..data.tables import CAPTIONS, LABELS, caption_texts, first_of, label_text
from ..errors import UserError
from .items import Source, read_file

# Files that `save_to_disk` writes, and the tables of a downloaded data set, which hold the images as well.
SAVED = ("dataset_dict.json", "state.json")
# The table of a folder of images, which `datasets` reads together with them.
OF_IMAGES = "metadata.parquet"
TABLES = ("*.parquet", "*.arrow", "data/*.parquet")
# As the hub names the tables of a data set, beside which a picture is a logo.
OF_THE_HUB = ("data/*.parquet", "*-?????-of-?????.parquet")


class HubSource(Source):
    """The first column of images, with the first column of class labels or else one called label, class, and so on.

    A column called text, caption, and so on (see `data.captions`) holds captions. Of several splits, train is used.
    """

    def __init__(self, name: str, labels: Labels = "auto") -> None:
        rows, self.notes = load_rows(name)
        rows = with_images(rows)
        kinds = {column: type(feature).__name__ for column, feature in rows.features.items()}
        images = [column for column, kind in kinds.items() if kind == "Image"]
        if not images:
            raise UserError(f"the data set {name} has no column of images; its columns are {', '.join(kinds)}")
        self.column = images[0]
        classes = [column for column, kind in kinds.items() if kind == "ClassLabel"]
        by = None if labels == "none" else next(iter(classes), None) or first_of(LABELS, list(kinds))
        self.notes += [f"the labels are those of the column {by}"] if by and len(kinds) > 2 else []
        self.class_names: list[str] = []
        if by in classes:
            self.class_names = list(rows.features[by].names)
            # -1 is how `datasets` writes that a class is not known.
            self.items = [
                Item(str(i), label) if label is not None and label >= 0 else Item(str(i), refused=UNLABELLED)
                for i, label in enumerate(rows[by])
            ]
            refuse_unlabelled(self.items, name)
        else:
            texts = [None] * len(rows)
            try:
                texts = [label_text(label) for label in rows[by]] if by else texts
            except ValueError as error:
                raise UserError(
                    f"the column {by} of {name} holds {error}, which is no class: choose one class for each image, or "
                    "add --labels none"
                ) from None
            self.items, self.class_names = labelled([str(i) for i in range(len(rows))], texts, name)
        told = first_of(CAPTIONS, [column for column in kinds if column not in (self.column, by)])
        self.texts = None if told is None else rows.select_columns([told])
        # As bytes: `data.decode` decodes them, as for every other source.
        as_bytes = type(rows.features[self.column])(decode=False)
        self.rows = rows.select_columns([self.column]).cast_column(self.column, as_bytes)

    def read(self, index: int) -> bytes:
        """Returns the file of an image: some sets hold its bytes, others its path."""
        image = self.rows[index][self.column] or {}
        if image.get("bytes"):
            return image["bytes"]
        if image.get("path"):
            return read_file(Path(image["path"]))
        raise OSError("the row holds no image")

    def captions(self, index: int) -> tuple[str, ...]:
        if self.texts is None:
            return ()
        return caption_texts(*self.texts[index].values(), where=f"row {index}")


def with_images(rows: Any) -> Any:
    """Returns rows with images where other programs than `datasets` have written {bytes, path}, or bytes alone."""
    from datasets import Image, Value

    features = rows.features
    if any(isinstance(feature, Image) for feature in features.values()):
        return rows
    for column, feature in features.items():
        named = isinstance(feature, dict) and feature.keys() == {"bytes", "path"}
        if named or (isinstance(feature, Value) and feature.dtype in ("binary", "large_binary")):
            rows = rows.cast_column(column, Image(decode=False))
    return rows


def is_hub_folder(folder: Path, images: bool) -> bool:
    """Whether a folder is read by `datasets`; images: whether it holds any, beside which a table may be of anything."""
    if any((folder / name).is_file() for name in (*SAVED, OF_IMAGES)):
        return True
    return any(any(folder.glob(pattern)) for pattern in (OF_THE_HUB if images else TABLES))


def load_rows(name: str) -> tuple[Any, list[str]]:
    """Loads a data set with `datasets`, of several splits train, and a note about the others.

    Raises UserError if that is not possible.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"there is no folder, list or archive {name}; for a data set of Hugging Face by that name install the "
            "package datasets: pip install 'fitv2[datasets]'"
        ) from None
    try:
        saved = any((Path(name) / file).is_file() for file in SAVED)
        found = datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
    except Exception as error:  # The library passes on what its readers and the network raise, of nearly any type.
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name} is no image source, and as a data set of Hugging Face: {reason}") from None
    if not isinstance(found, datasets.DatasetDict):
        return found, []
    splits = list(map(str, found))
    if "train" not in found and len(found) > 1:
        raise UserError(f"the data set {name} has the splits {', '.join(splits)} and none called train")
    if len(found) == 1:
        return next(iter(found.values())), []
    others = ", ".join(f"{split} ({len(found[split])} rows)" for split in splits if split != "train")
    return found["train"], [f"of the splits only train is used, not {others}"]

"""Settings of a recipe's `data` section, by its source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from ..errors import UserError

# Cut-outs on one canvas; more would be specks.
MOST_OBJECTS = 4


class Settings(BaseModel):
    """Base of all settings: no unknown keys, no changes, finite numbers only, no true or false for them."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def yes_is_no_number(cls, tree: Any) -> Any:
        """Pydantic takes true for 1, and YAML yes and on for true."""
        for key, value in tree.items() if isinstance(tree, dict) else ():
            if isinstance(value, bool) and key in cls.model_fields and cls.model_fields[key].annotation is not bool:
                raise UserError(f"{key} must not be true or false, as yes, no, on and off are in YAML")
        return tree


MinScale = Annotated[
    float, Field(gt=0, le=1, description="draw images at random linear scales from this up to 1; 1: their own size")
]


FurtherTokens = Annotated[
    tuple[PositiveInt, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, int) else value),
    Field(description="smaller budgets than max_tokens: each epoch draws one of all for each image"),
]
Preprocessing = Literal["mixed", "resize", "crop"]
Flip = Annotated[bool, Field(description="folder, emoji: mirror half of the images")]


class CanvasSettings(Settings):
    """Canvases on which cut-outs are laid: their shapes, and how many cut-outs each has."""

    aspect: tuple[PositiveFloat, PositiveFloat] = Field(default=(0.25, 4.0), description="width / height, from and to")
    objects: tuple[PositiveInt, PositiveInt] = Field(default=(1, 4), description="cut-outs on a canvas, from and to")

    @model_validator(mode="after")
    def ranges_rise(self) -> Self:
        for key, (low, high) in (("aspect", self.aspect), ("objects", self.objects)):
            if low > high:
                raise UserError(f"{key}=[{low}, {high}] is empty: give the smaller number first")
        if self.objects[1] > MOST_OBJECTS:
            raise UserError(f"objects={list(self.objects)} is too many: at most {MOST_OBJECTS} fit a canvas")
        return self


Canvas = Annotated[
    CanvasSettings | None,
    Field(
        description="emoji, or a folder of transparent cut-outs: two thirds of the images are canvases with some of "
        "them, such as {aspect: [0.25, 4], objects: [1, 4]}; null: none"
    ),
]


class FashionSettings(Settings):
    """The built-in images of garments."""

    source: Literal["fashion"] = Field(
        description="'fashion' or 'emoji' (built in), a folder of images, or one that 'fitv2 prepare' made"
    )
    split: Literal["bundled", "full"] = Field(
        default="bundled", description="fashion: the packaged 10,000 or all 60,000"
    )
    folder: Path | None = Field(
        default=None, description="fashion: where the upstream files are, if not where Debian puts them"
    )
    max_tokens: PositiveInt = Field(
        default=49, description="larger images are scaled down to this many tokens; default for fashion 49, else 256"
    )
    preprocessing: Preprocessing = Field(
        default="resize", description="Algorithm 1 of FiTv2 (mixed) or one of its versions; default for fashion resize"
    )
    min_scale: MinScale = 1.0
    further_tokens: FurtherTokens = ()


class FolderSettings(Settings):
    """Images, or latents, in a folder."""

    source: str
    max_tokens: PositiveInt = 256
    channels: Literal[1, 3] = Field(default=3, description="folder: 3 for colour, 1 for grey")
    labels: Literal["auto", "folders", "none"] = Field(
        default="auto",
        description="folder: the classes are its sub-folders (folders), those of metadata.jsonl, metadata.csv or "
        "dataset.json in it, or else its sub-folders (auto); or there are none (none)",
    )
    preprocessing: Preprocessing = "mixed"
    flip: Flip = True
    stand_in: Literal["imagenet"] | None = Field(
        default=None, description="sizes that --dry-run plans with while the source is not here"
    )
    min_scale: MinScale = 1.0
    further_tokens: FurtherTokens = ()
    canvas: Canvas = None

    @model_validator(mode="after")
    def canvases_have_their_own_sizes(self) -> Self:
        if self.canvas is not None and (self.channels != 3 or self.preprocessing == "crop" or self.further_tokens):
            raise UserError("data.canvas goes with data.channels=3, data.preprocessing=resize and no further_tokens")
        return self


class EmojiSettings(Settings):
    """Drawings of things, with names: the bundled ones, or those of `fitv2 emoji`."""

    source: Literal["emoji"]
    folder: Path | None = Field(default=None, description="emoji: the folder that 'fitv2 emoji' made; default: bundled")
    classes: Literal["group", "name", "none"] = Field(
        default="group", description="emoji: the class of an image of one thing (images of several have none), or none"
    )
    max_tokens: PositiveInt = 64
    flip: Flip = True
    min_scale: MinScale = 0.35
    canvas: Canvas = CanvasSettings()


DataSettings = FashionSettings | FolderSettings | EmojiSettings
BUILT_IN = ("fashion", "emoji")


def kind_of_source(data: Any) -> str:
    """Returns which settings `data` has, by its source."""
    source = data.get("source", "fashion") if isinstance(data, Mapping) else getattr(data, "source", None)
    return source if source in BUILT_IN else "folder"

"""When and how runs are scored, as data: views of the real pictures, sizes, guidance, samplers."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, StringConstraints, model_validator

from ..errors import UserError
from ..evaluation.efficientnet import EfficientNetExtractor
from ..evaluation.garments import GarmentExtractor
from ..generate import ADAPTIVE, DIFFUSION_SOLVERS, Sampling
from ..model.config import NetworkConfig
from ..model.rope import ATTENTION_SCALES, EXTRAPOLATIONS
from ..settings import Settings

# Of variants and views: they name files.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]
Size = Annotated[str, StringConstraints(pattern=r"^[1-9]\d*x[1-9]\d*$")]
# What networks predict, as studies call it.
KINDS = {"velocity": "velocity", "epsilon": "noise"}
# Those whose weights come with a package; fewer pictures than this have no nearest neighbours to speak of.
Extractor = Literal[GarmentExtractor.name, EfficientNetExtractor.name]
FEWEST = 6


class Sampler(Settings):
    """Of one kind of model, see `fitv2.generate.Sampling`; not one that chooses its own steps, which has no cost."""

    solver: str
    steps: PositiveInt

    @property
    def prediction(self) -> Literal["velocity", "noise"]:
        """What a network has to predict for it."""
        return "noise" if self.solver in DIFFUSION_SOLVERS else "velocity"

    @model_validator(mode="after")
    def its_cost_is_known(self) -> Self:
        if self.solver in ADAPTIVE:
            raise UserError(f"the solver {self.solver} chooses its own steps, and a study counts them; take another")
        Sampling(solver=self.solver, steps=self.steps)  # Raises for what is wrong.
        return self


class Condition(Settings):
    """How pictures are asked for, and what they are compared with.

    view: whose shapes, and whose real pictures. size: HEIGHTxWIDTH in pixels; all pictures are asked for in that size,
    and real ones, as the view has them, are scaled to cover it and cut. extrapolation: of positions, by the names of
    `fitv2.model.rope.EXTRAPOLATIONS`, and attention_scale with it, as of `RopeScheme.named`. sampler: another than that
    of the evaluation, for the models that it fits.
    """

    view: str
    guidance: float
    size: Size | None = None
    extrapolation: Literal[*EXTRAPOLATIONS] | None = None
    attention_scale: Literal["none", *ATTENTION_SCALES] | None = None
    sampler: Sampler | None = None

    @property
    def pixels(self) -> tuple[int, int] | None:
        """The size as (height, width)."""
        if self.size is None:
            return None
        height, _, width = self.size.partition("x")
        return int(height), int(width)

    @property
    def place(self) -> str:
        """Which real pictures there are to compare with, in words."""
        return self.view if self.size is None else f"{self.view} at {self.size}"

    @property
    def name(self) -> str:
        parts = [self.place, f"guidance {self.guidance:g}" if self.guidance != 1 else "unguided"]
        parts += [self.extrapolation] if self.extrapolation is not None else []
        parts += [f"attention scale {self.attention_scale}"] if self.attention_scale is not None else []
        parts += [f"{self.sampler.steps} steps of {self.sampler.solver}"] if self.sampler is not None else []
        return ", ".join(parts)

    def suits(self, config: NetworkConfig) -> bool:
        """Whether such a network can be sampled so: a fixed grid extrapolates nothing, a sampler is for one kind."""
        if self.extrapolation is not None and config.fixed_grid is not None:
            return False
        return self.sampler is None or self.sampler.prediction == KINDS[config.prediction]

    @model_validator(mode="after")
    def a_scale_belongs_to_an_extrapolation(self) -> Self:
        if self.attention_scale is not None and self.extrapolation is None:
            raise UserError("an attention_scale belongs to an extrapolation; name one, such as vision-ntk")
        return self


VIEWS = {"square": {"data.preprocessing": "crop"}, "own": {"data.preprocessing": "resize"}}
SAMPLERS = {"velocity": Sampler(solver="ab2", steps=25), "noise": Sampler(solver="ddim", steps=50)}


class Evaluation(Settings):
    """When and how runs are scored.

    extractor: the network that sees the pictures, see `fitv2.evaluation.extractors`. points: steps of the curve, each
    scored under `point` with `images` pictures; the last step always is one, and those beyond are none. The end is
    scored with `final_images` under every view and guidance, and under `conditions`. views: changes of the recipe's
    data, by dotted keys, that give the real pictures to compare with. samplers: by what a network predicts; one that is
    left out is as by default.
    """

    extractor: Extractor = GarmentExtractor.name
    points: tuple[PositiveInt, ...]
    images: int = Field(300, ge=2)
    final_images: int = Field(1000, ge=FEWEST)
    views: dict[Name, dict[str, Any]] = Field(VIEWS, min_length=1)
    guidance: tuple[float, ...] = Field((1.0, 1.5), min_length=1)
    point: Condition = Condition(view="square", guidance=1.5)
    conditions: tuple[Condition, ...] = ()
    samplers: dict[Literal["velocity", "noise"], Sampler] = Field(SAMPLERS)

    @property
    def by_view(self) -> list[Condition]:
        """Every view with every guidance."""
        return [Condition(view=view, guidance=guidance) for view in self.views for guidance in self.guidance]

    @property
    def final(self) -> list[Condition]:
        """All of the end."""
        return [*self.by_view, *self.conditions]

    @model_validator(mode="after")
    def the_point_is_one_of_the_end(self) -> Self:
        if self.point not in self.by_view:
            raise UserError(f"the point '{self.point.name}' is none of the views and guidances")
        return self

    @model_validator(mode="after")
    def conditions_are_of_a_view_and_told_apart(self) -> Self:
        for condition in self.conditions:
            if condition.view not in self.views:
                raise UserError(
                    f"the condition '{condition.name}' is of no view; the views are {', '.join(self.views)}"
                )
        names = [condition.name for condition in self.final]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"the condition '{twice[0]}' is there twice")
        return self

    @model_validator(mode="after")
    def samplers_fit_what_is_predicted(self) -> Self:
        for prediction, sampler in self.samplers.items():
            if sampler.prediction != prediction:
                raise UserError(f"the solver {sampler.solver} is not for models that predict {prediction}")
        return self

    def sampling(self, condition: Condition, config: NetworkConfig) -> Sampling:
        """How a model of that configuration, which the condition suits, is sampled."""
        sampler = condition.sampler or (SAMPLERS | self.samplers)[KINDS[config.prediction]]
        rope = condition.extrapolation and config.rope.named(condition.extrapolation, condition.attention_scale)
        return Sampling(solver=sampler.solver, steps=sampler.steps, guidance=condition.guidance, rope=rope)

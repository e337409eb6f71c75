"""The claims of a study, as its YAML file states them; `fitv2.study.verdicts` judges them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from ..config import Settings

# Metrics of `fitv2 evaluate` that are positive, so that they have a logarithm. The kernel distance may be negative.
Metric = Literal["fd", "accuracy", "precision", "recall", "density", "coverage"]
LOWER_IS_BETTER = ("fd", "kid")


class Better(Settings):
    """The final score is better than that of each other variant; condition: by default the one that decides."""

    kind: Literal["better"]
    of: str
    than: str | tuple[str, ...]
    metric: Metric = "fd"
    condition: str | None = None

    @property
    def others(self) -> tuple[str, ...]:
        return (self.than,) if isinstance(self.than, str) else self.than


class Pair(Settings):
    """A comparison of two variants."""

    of: str
    than: str

    @property
    def others(self) -> tuple[str, ...]:
        return (self.than,)


class Equal(Pair):
    """The final scores differ by less than a fraction `within`."""

    kind: Literal["equal"]
    within: PositiveFloat = 0.1
    metric: Metric = "fd"
    condition: str | None = None


class Faster(Pair):
    """`of` reaches the last score of the curve of `than` at 1 / `at_least` of its cost.

    That is decided where it would be seen: by the score of `of` at that fraction of the cost, which must be better than
    the last one of `than`. So a variant that never gets there needs no cost.
    """

    kind: Literal["faster"]
    at_least: float = Field(gt=1)
    cost: Literal["step", "operations", "cpu_seconds"] = "step"


class Diverges(Pair):
    """The training of `of` diverges and that of `than` does not."""

    kind: Literal["diverges"]


Measure = Better | Equal | Faster | Diverges


class Claim(Settings):
    """A sentence, the paper's figure for it, and how the study measures it."""

    text: str
    paper: str
    measure: Annotated[Measure, Field(discriminator="kind")]

    @property
    def variants(self) -> tuple[str, ...]:
        return self.measure.of, *self.measure.others

"""The claims of a study, as its YAML file states them; `fitv2.study.verdicts` judges them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from ..config import Settings

# Metrics of `fitv2 evaluate` that are positive, so that they have a logarithm. The kernel distance may be negative.
Metric = Literal["fd", "sfd", "classifier_score", "precision", "recall", "density", "coverage", "accuracy"]
LOWER_IS_BETTER = ("fd", "sfd", "kid")


class Better(Settings):
    """The final score of `of` is better than that of `than`.

    Attributes:
        condition: A condition of the evaluation, by name; by default the first one, which decides.
    """

    kind: Literal["better"]
    of: str
    than: str
    metric: Metric = "fd"
    condition: str | None = None

    @property
    def variants(self) -> tuple[str, ...]:
        return self.of, self.than


class Equal(Better):
    """The final scores differ by less than a fraction `within`."""

    kind: Literal["equal"]
    within: PositiveFloat = 0.1


class Best(Settings):
    """The final score of `of` is better than that of each variant of `than`."""

    kind: Literal["best"]
    of: str
    than: tuple[str, ...] = Field(min_length=2)
    metric: Metric = "fd"
    condition: str | None = None

    @property
    def variants(self) -> tuple[str, ...]:
        return self.of, *self.than


class Faster(Settings):
    """`of` reaches the last score of the curve of `than` at 1 / `at_least` of its cost.

    That is decided where it would be seen: by the score of `of` at that fraction of the cost, which must not be worse
    than the last one of `than`. So a variant that never gets there needs no cost.
    """

    kind: Literal["faster"]
    of: str
    than: str
    at_least: float = Field(gt=1)
    cost: Literal["step", "operations", "cpu_seconds"] = "step"
    metric: Literal["fd"] = "fd"

    @property
    def variants(self) -> tuple[str, ...]:
        return self.of, self.than


class Diverges(Settings):
    """The training of `of` diverges and that of `than` does not."""

    kind: Literal["diverges"]
    of: str
    than: str

    @property
    def variants(self) -> tuple[str, ...]:
        return self.of, self.than


class Claim(Settings):
    """A sentence, the paper's figure for it, and how the study measures it."""

    text: str
    paper: str
    measure: Annotated[Better | Equal | Best | Faster | Diverges, Field(discriminator="kind")]

"""What a run has measured, as it is stored: wall seconds of every turn, and what a turn was worth."""

from __future__ import annotations

from statistics import median
from typing import Literal

from pydantic import BaseModel, ConfigDict

Unit = Literal["images", "tokens", "flops"]


class Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Measurement(Stored):
    """seconds: of each turn. images, tokens, flops: of one turn, without padding. bytes: the peak memory of a turn
    beyond what was there before. precision: of its products, "bf16" or "float32".
    """

    name: str
    precision: str
    images: int = 0
    tokens: int = 0
    flops: int
    seconds: list[float]
    bytes: int = 0

    def rates(self, unit: Unit) -> list[float]:
        """Units per second, turn by turn."""
        return [getattr(self, unit) / seconds for seconds in self.seconds]

    def rate(self, unit: Unit) -> float:
        return median(self.rates(unit))


class MeasuredPart(Stored):
    """Works that took turns. products: the matrix products among them, by precision. base: the measurement that the
    others are compared with, in `unit`s per second. commit: of the code.
    """

    name: str
    commit: str = "unknown"
    title: str
    about: str
    unit: Unit
    base: str
    products: dict[str, Measurement]
    measurements: list[Measurement]

    def ratio(self, measured: Measurement) -> float:
        """How many times as fast as the base, the median over the turns."""
        base = next(m for m in self.measurements if m.name == self.base)
        return median_ratio(measured.rates(self.unit), base.rates(self.unit))

    def share_of_peak(self, measured: Measurement) -> float:
        """Useful FLOPs per second, as a fraction of those of the matrix product in the same turn."""
        return median_ratio(measured.rates("flops"), self.products[measured.precision].rates("flops"))


class Results(Stored):
    """machine: what it ran on, as lines for people."""

    machine: dict[str, str]
    parts: list[MeasuredPart]


def median_ratio(above: list[float], below: list[float]) -> float:
    """Turn by turn, because a machine that drifts slows both down."""
    return median(a / b for a, b in zip(above, below, strict=True))

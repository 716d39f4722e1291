"""Plots as data: where things stand, in percent of the width. The templates draw them, style sheets colour them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

MOST_TICKS = 6


@dataclass(frozen=True)
class Tick:
    """A place on an axis, in percent, and what stands there."""

    at: float
    label: str


@dataclass(frozen=True)
class Scale:
    """Numbers from `low` to `high` as percent of a width, evenly or by their logarithms."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where a number stands, at an end if it is beyond it; what is not finite stands at the far one."""
        if not math.isfinite(value):
            return 100.0
        if self.log:
            value = max(value, self.low)
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 2)

    def ticks(self) -> list[Tick]:
        """Powers of ten, or round steps from zero."""
        if not self.log:
            step = _round_step(self.high / 4)
            return [Tick(self.at(i * step), f"{i * step:g}") for i in range(int(self.high / step + 1e-9) + 1)]
        first, last = (round(math.log10(end)) for end in (self.low, self.high))
        stride = math.ceil((last - first + 1) / MOST_TICKS)
        return [Tick(self.at(10.0**power), _power(power)) for power in range(first, last + 1, stride)]


def log_scale(values: Iterable[float]) -> Scale:
    """Whole decades around all values that have a logarithm."""
    known = [value for value in values if math.isfinite(value) and value > 0] or [1.0]
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    return Scale(10.0**low, 10.0 ** max(high, low + 1), log=True)


def linear_scale(values: Iterable[float]) -> Scale:
    """From zero to a little beyond the largest."""
    largest = max((value for value in values if math.isfinite(value)), default=0.0)
    return Scale(0.0, largest * 1.04 if largest > 0 else 1.0)


@dataclass(frozen=True)
class Mark:
    """A dot, or a bar from zero, with what it says when pointed at; whiskers reach from `low` to `high` percent."""

    at: float
    title: str
    kind: str = "dot"
    colour: str = "own"
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """What is measured, the marks on its track, and the numbers beside it."""

    label: str
    marks: list[Mark]
    cells: list[str] = field(default_factory=list)
    title: str = ""
    culprit: bool = False


@dataclass(frozen=True)
class Strip:
    """Rows that share one axis; `limit` is a line across all of them, `columns` head the numbers beside the tracks."""

    rows: list[Row]
    ticks: list[Tick]
    columns: list[str]
    head: str = ""
    limit: Tick | None = None


def _round_step(raw: float) -> float:
    """The least of 1, 2, 5 and 10 times a power of ten that is no less than `raw`."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(multiple * power for multiple in (1, 2, 5, 10) if multiple * power >= raw * (1 - 1e-9))


def _power(exponent: int) -> str:
    """1e-4, 0.01, 1, 100."""
    return f"{10.0**exponent:g}" if -3 <= exponent <= 4 else f"1e{exponent}"

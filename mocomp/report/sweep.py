"""The report of `mocomp quantize`: ways to quantise side by side."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from mocomp.verify.quality import Quality


@dataclass
class Way:
    """One format with one algorithm, or the floats themselves: bytes of the artifact's weights, bits of a weight of the
    experts with all that belongs to it, milliseconds by workload, and why it cannot run on the target if it cannot."""

    format: str
    algorithm: str = ""
    nbytes: int = 0
    bits: float = 32.0
    quality: Quality | None = None
    ms: dict[str, float] = field(default_factory=dict)
    obstacle: str = ""
    front: bool = False

    @property
    def name(self) -> str:
        return f"{self.format} {self.algorithm}".strip()

    @property
    def loss(self) -> float:
        """What it costs in quality."""
        return 0.0 if self.quality is None else self.quality.loss


@dataclass
class Sweep:
    """All ways; those on the Pareto front are as small and as good as any, and better in one of the two."""

    source: str
    ways: list[Way]
    notes: list[str]
    data: str

    def as_json(self) -> dict[str, Any]:
        """All of it, with the summaries of each quality."""
        data = dataclasses.asdict(self)
        for shown, way in zip(data["ways"], self.ways, strict=True):
            shown["quality"] = way.quality.as_json() if way.quality is not None else None
        return data

    def __post_init__(self) -> None:
        for way in self.ways:
            way.front = not any(_better(other, way) for other in self.ways)


def _better(one: Way, other: Way) -> bool:
    """Whether one is nowhere worse and somewhere better, in bytes and in quality."""
    a, b = (one.nbytes, one.loss), (other.nbytes, other.loss)
    return a != b and a[0] <= b[0] and a[1] <= b[1]

"""Rounding to the nearest, with scales from the largest weight of each tile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mocomp.quant.algorithms import Algorithm, Moments
from mocomp.quant.chunks import rounded
from mocomp.quant.formats import Format, Grid


@dataclass(frozen=True)
class RTN(Algorithm):
    """codes = round(w / scale + zero)."""

    name: ClassVar[str] = "rtn"

    def quantise(self, w: Tensor, format: Format, moments: Moments | None) -> tuple[Tensor, Grid]:
        return rounded(w, format, lambda part: format.fit(w[part]))

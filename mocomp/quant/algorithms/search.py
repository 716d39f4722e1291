"""Rounding to the nearest, with scales searched for the least squared error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mocomp.quant.algorithms import Algorithm, Moments
from mocomp.quant.chunks import rounded
from mocomp.quant.formats import Format, Grid
from mocomp.quant.moments import columns
from mocomp.quant.refining import refined


@dataclass(frozen=True)
class Search(Algorithm):
    """The error is that of the weights; where there are moments, each column counts by the mean square of its input."""

    name: ClassVar[str] = "search"
    weighs: ClassVar[bool] = True

    def quantise(self, w: Tensor, format: Format, moments: Moments | None) -> tuple[Tensor, Grid]:
        if moments is None:
            return rounded(w, format, lambda part: refined(w[part], format))
        importance = columns(moments.second)
        return rounded(w, format, lambda part: refined(w[part], format, importance[part]))

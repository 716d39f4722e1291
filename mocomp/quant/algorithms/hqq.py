"""Half-quadratic quantisation (Badri & Shaji 2023): grids that need no data, and do not chase outliers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mocomp.quant.algorithms import Algorithm, Moments
from mocomp.quant.chunks import rounded
from mocomp.quant.formats import Format, Grid
from mocomp.quant.refining import refined


@dataclass(frozen=True)
class HQQ(Algorithm):
    """Turns of shrinkage and closed form: errors split off their large part, min |e|^p + beta/2 |e - error|^2 with p < 1, and
    the grid is solved for the rest.

    Unlike in the paper, the scale is solved as well as the zero point, which formats store as an integer or not at all; an
    error is in units of the scale, so that small weights are treated as large ones; and each tile keeps the grid of the least
    squared error it has seen. To keep that of the least |e|^p makes outputs worse than plain rounding does at 4 bits.
    """

    name: ClassVar[str] = "hqq"
    p: float = 0.7
    beta: float = 4.0

    def quantise(self, w: Tensor, format: Format, moments: Moments | None) -> tuple[Tensor, Grid]:
        return rounded(w, format, lambda part: refined(w[part], format, spare=self._shrunk))

    def _shrunk(self, error: Tensor) -> Tensor:
        """The generalised soft threshold of Chartrand & Yin (2016)."""
        size = error.abs()
        return error.sign() * (size - size ** (self.p - 1) / self.beta).clamp(min=0)

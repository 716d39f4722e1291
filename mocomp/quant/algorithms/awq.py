"""AWQ (Lin et al. 2024): large inputs are scaled down and their weights up, before weights are rounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mocomp.errors import Usage
from mocomp.quant.algorithms import Algorithm, Moments
from mocomp.quant.chunks import rounded
from mocomp.quant.formats import Format, Grid
from mocomp.quant.moments import damped
from mocomp.quant.refining import refined


@dataclass(frozen=True)
class AWQ(Algorithm):
    """`mocomp.quant.balancing` finds what to scale by; w and moments here are scaled already.

    What is left is the paper's second step, to clip: each tile takes the scale of the least error in the output, all products
    of its columns counted, and others' columns not.
    """

    name: ClassVar[str] = "awq"
    calibrated: ClassVar[bool] = True
    balances: ClassVar[bool] = True

    def quantise(self, w: Tensor, format: Format, moments: Moments | None) -> tuple[Tensor, Grid]:
        """Raises Usage without moments."""
        if moments is None:
            raise Usage("awq needs calibration data")
        second = moments.second
        return rounded(w, format, lambda part: refined(w[part], format, damped(second[part])))

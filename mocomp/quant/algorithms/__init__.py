"""Algorithms: each file is one way to choose the codes and scales of a weight, for all experts of a bank at once.

To add one, add a file with a frozen dataclass derived from `Algorithm`. It sees float weights and moments of what comes into
them, and speaks to a format through `fit`, `nearest`, `value` and `storable` alone.
Dimension letters: E experts, N rows, K columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mocomp.quant.formats import Format, Grid


@dataclass
class Moments:
    """What came into each expert's weight on calibration data.

    `second` [E, K, K] float32 is the sum over its tokens of share^2 * x x^T (share is the router's weight of the token, so
    that an error counts by what it does to the mixture), `magnitude` [E, K] the mean of |x|, `tokens` [E] how many there
    were. The squared error that w -> w + d makes in the output is sum(d second d^T).
    """

    second: Tensor
    magnitude: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Algorithm(ABC):
    """A way to quantise; `calibrated` ones need moments and `weighs` ones use them where there are some; `balances` ones also
    scale the columns of a weight beforehand."""

    name: ClassVar[str] = ""
    calibrated: ClassVar[bool] = False
    weighs: ClassVar[bool] = False
    balances: ClassVar[bool] = False

    @abstractmethod
    def quantise(self, w: Tensor, format: Format, moments: Moments | None) -> tuple[Tensor, Grid]:
        """w [E, N, K] float32 -> codes [E, N, K] uint8 and their storable grid. Does not write to w."""

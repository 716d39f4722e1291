"""The product with one row for each expert (Shazeer 2017, and nearly all after it)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from mocomp.scorers import Reads, Scorer


@dataclass(frozen=True)
class Linear(Scorer):
    """z = x W^T, plus b where `bias`; w [E, H], b [E]. Frozen at random it is the router of SMoE-Dropout (Chen 2023)."""

    name: ClassVar[str] = "linear"
    bias: bool = False

    def reads(self) -> Reads:
        bias = {"bias": (self.experts,)} if self.bias else {}
        return Reads(weights={"weight": (self.experts, self.hidden), **bias})

    def scores(self, x: Tensor, *tensors: Tensor) -> Tensor:
        return F.linear(x, *tensors)

    @classmethod
    def examples(cls) -> Iterator[Scorer]:
        yield from (cls(16, 8), cls(16, 8, bias=True))

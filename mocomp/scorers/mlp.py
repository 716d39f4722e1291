"""Two products with a tanh between them (LLaMA-MoE, Zhu 2024, whose inner width is E)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mocomp.scorers import Reads, Scorer


@dataclass(frozen=True)
class MLP(Scorer):
    """z = tanh(x W_1^T) W_2^T; w_1 [width, H], w_2 [E, width], where a `width` of 0 is E."""

    name: ClassVar[str] = "mlp"
    width: int = 0

    def reads(self) -> Reads:
        width = self.width or self.experts
        return Reads(weights={"first": (width, self.hidden), "second": (self.experts, width)})

    def scores(self, x: Tensor, *tensors: Tensor) -> Tensor:
        first, second = tensors
        return F.linear(torch.tanh(F.linear(x, first)), second)

    @classmethod
    def examples(cls) -> Iterator[Scorer]:
        yield from (cls(16, 8), cls(16, 8, width=5))

"""Experts that choose themselves, by how strongly they respond (Autonomy-of-Experts, Lv 2025, arXiv 2501.13074)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mocomp.scorers import Reads, Scorer


@dataclass(frozen=True)
class Norms(Scorer):
    """z_e = |W_e x|, for the low-rank half W_e of expert e's first product; w [E, width, H]. `topk_softmax` weighs by it."""

    name: ClassVar[str] = "norms"
    width: int = 5

    def reads(self) -> Reads:
        return Reads(weights={"weight": (self.experts, self.width, self.hidden)})

    def scores(self, x: Tensor, *tensors: Tensor) -> Tensor:
        (weight,) = tensors
        inner = F.linear(x, weight.flatten(0, 1)).unflatten(-1, (self.experts, self.width))
        return torch.linalg.vector_norm(inner, dim=-1)

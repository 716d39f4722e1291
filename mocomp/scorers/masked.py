"""A table of the experts that each token id may have (MaskMoE, Su 2024, arXiv 2407.09816)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mocomp.scorers import Reads, Scorer


@dataclass(frozen=True)
class Masked(Scorer):
    """z = x W^T where the id's row allows the expert, else -inf; w [E, H], allowed [ids, E], above 0 where it does."""

    name: ClassVar[str] = "masked"
    ids: int = 11

    def reads(self) -> Reads:
        weights = {"weight": (self.experts, self.hidden), "allowed": (self.ids, self.experts)}
        return Reads({"id": ()}, weights, {"id": self.ids})

    def scores(self, x: Tensor, *tensors: Tensor) -> Tensor:
        ids, weight, allowed = tensors
        return torch.where(F.embedding(ids, allowed) > 0, F.linear(x, weight), float("-inf"))

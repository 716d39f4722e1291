"""The mean token of a sequence, for all of its tokens (Mobile V-MoE, Daxberger 2023; SMEAR, Muqeeth 2023; WEMoE 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from mocomp.scorers import Reads, Scorer


@dataclass(frozen=True)
class Pooled(Scorer):
    """z = mean over S of x [B, S, H], times W^T, the same for each token; w [E, H].

    With a linear score it is what the router `per_image` does to logits; WEMoE, whose gate is deeper, needs the mean first.
    """

    name: ClassVar[str] = "pooled"
    causal: ClassVar[bool] = False

    def reads(self) -> Reads:
        return Reads(weights={"weight": (self.experts, self.hidden)})

    def scores(self, x: Tensor, *tensors: Tensor) -> Tensor:
        return F.linear(x.mean(-2, keepdim=True).expand_as(x), *tensors)

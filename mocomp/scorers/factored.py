"""A score for each of two parts that make an expert (CartesianMoE, Su 2024, arXiv 2410.16077; two-level routing)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from mocomp.scorers import Reads, Scorer


@dataclass(frozen=True)
class Factored(Scorer):
    """z of expert a * second + b = x U_a + x V_b, where `second` is how many b there are; u [E / second, H], v [second, H].

    The softmax over the pairs is the product of the softmax over either part. CartesianMoE runs its parts one after the
    other, each routed by itself, which is two mixtures; this is its choice as one.
    """

    name: ClassVar[str] = "factored"
    second: int = 2

    def reads(self) -> Reads:
        return Reads(weights={"first": (self.experts // self.second, self.hidden), "second": (self.second, self.hidden)})

    def scores(self, x: Tensor, *tensors: Tensor) -> Tensor:
        a, b = (F.linear(x, weight) for weight in tensors)
        return (a[..., None] + b[..., None, :]).flatten(-2)

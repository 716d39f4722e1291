"""Two halves of a query against as many sub-keys each (PEER, He 2024, arXiv 2407.04153; Lample 2019)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mocomp.scorers import Reads, Scorer


@dataclass(frozen=True)
class ProductKey(Scorer):
    """z [.., 2 n] = [q_1 K_1^T, q_2 K_2^T] with [q_1, q_2] = x Q^T, for n * n experts, as the router `product_key` reads it.

    Q [2 width, H], K_1 and K_2 [n, width]. The paper's norm of the query is the model's, before this.
    """

    name: ClassVar[str] = "product_key"
    width: int = 3

    @property
    def columns(self) -> int:
        return 2 * math.isqrt(self.experts)

    def reads(self) -> Reads:
        keys = (self.columns // 2, self.width)
        return Reads(weights={"query": (2 * self.width, self.hidden), "first": keys, "second": keys})

    def scores(self, x: Tensor, *tensors: Tensor) -> Tensor:
        query, *keys = tensors
        halves = F.linear(x, query).chunk(2, -1)
        return torch.cat([F.linear(half, key) for half, key in zip(halves, keys, strict=True)], -1)

    @classmethod
    def examples(cls) -> Iterator[Scorer]:
        yield cls(16, 9)

"""Product keys (PEER, He 2024, arXiv 2407.04153; Lample 2019): n + n scores choose among n * n experts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from mocomp.routers import Evidence, Example, Router


@dataclass(frozen=True)
class ProductKey(Router):
    """z [T, 2 n], the scores of the first sub-keys, then of the second; expert i n + j scores z_i + z_{n+j}.

    The k best of either half hold the k best sums. Weights are `score` over the k chosen sums: "softmax", or "sigmoid" of
    each. Heads are tokens here: a layer of several heads routes T * heads rows and adds what comes out.
    """

    name: ClassVar[str] = "product_key"
    score: str = "softmax"

    def columns(self, experts: int) -> int:
        return 2 * math.isqrt(experts)

    def choose(self, logits: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        n = logits.shape[-1] // 2
        kept = min(self.k, n)
        (first, rows), (second, columns) = (torch.topk(half, kept, -1) for half in logits.split(n, -1))
        sums = (first[..., None] + second[..., None, :]).reshape(-1, kept * kept)
        pairs = (rows[..., None] * n + columns[..., None, :]).reshape(-1, kept * kept)
        best, places = torch.topk(sums, self.k, -1)
        return pairs.gather(-1, places), torch.sigmoid(best) if self.score == "sigmoid" else torch.softmax(best, -1)

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator[ProductKey]:
        """None: its logits are not one for each expert, which is where one looks for a router."""
        return iter(())

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield from (Example(router, 16) for router in (cls(3), cls(5), cls(2, "sigmoid")))

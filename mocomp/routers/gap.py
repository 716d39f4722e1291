"""One expert where it stands out, else two (adaptive gating, Li 2023, arXiv 2310.07188)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch

from mocomp.errors import Unsupported
from mocomp.routers import Evidence, Example, Router


@dataclass(frozen=True)
class Gap(Router):
    """p = softmax(z); the best expert alone where p_1 - p_2 > `threshold`, else the k best; weights p.

    The paper has k = 2. Whether weights of two are divided by their sum, as GShard does, is for `normalize` to say.
    """

    name: ClassVar[str] = "gap"
    fixed: ClassVar[bool] = False
    threshold: float = 0.1
    normalize: bool = False

    def __post_init__(self) -> None:
        if self.k < 2:
            raise Unsupported("a gap between two experts where one is chosen", where=self.name)

    def choose(self, logits: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, ids = torch.topk(logits, self.k, -1)
        scores = torch.softmax(logits, -1).gather(-1, ids)
        alone = scores[:, :1] - scores[:, 1:2] > self.threshold
        first = torch.arange(self.k, device=ids.device) == 0
        weights = torch.where(first | ~alone, scores, 0.0)
        return ids, weights / weights.sum(-1, keepdim=True) if self.normalize else weights

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator[Gap]:
        if evidence.k < 2 or evidence.tensors or "softmax" not in evidence.ops or "sub" not in evidence.ops:
            return
        yield from (cls(evidence.k, *fields) for fields in product(evidence.fractions, (False, True)))

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield from (Example(router) for router in (cls(2, 0.3), cls(2, 0.3, True), cls(3, 0.1)))

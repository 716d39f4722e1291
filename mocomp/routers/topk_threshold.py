"""The second expert only where it matters (ST-MoE, Zoph 2022, arXiv 2202.08906; Mesh TensorFlow's `threshold`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch

from mocomp.routers import Evidence, Example, Router


@dataclass(frozen=True)
class TopKThreshold(Router):
    """p = softmax(z); the k largest p, divided by their sum when `normalize`; of those after the first, what is not above
    `threshold` is left out, and the others are not divided again.

    In training the paper takes the second with probability min(1, p / threshold); this is what it does without chance.
    """

    name: ClassVar[str] = "topk_threshold"
    fixed: ClassVar[bool] = False
    threshold: float = 0.2
    normalize: bool = True

    def choose(self, logits: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, ids = torch.topk(logits, self.k, -1)
        scores = torch.softmax(logits, -1).gather(-1, ids)
        if self.normalize:
            scores = scores / scores.sum(-1, keepdim=True)
        first = torch.arange(self.k, device=ids.device) == 0
        return ids, torch.where(first | (scores > self.threshold), scores, 0.0)

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator[TopKThreshold]:
        if evidence.k < 2 or evidence.tensors or "softmax" not in evidence.ops or "gt" not in evidence.ops:
            return
        yield from (cls(evidence.k, *fields) for fields in product(evidence.fractions, (True, False)))

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield from (Example(router) for router in (cls(2), cls(3, 0.1, normalize=False)))

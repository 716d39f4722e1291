"""Every expert whose score is above a threshold: as code is written that no one paper stands behind.

With `at_least_one`, a token that no expert is above the threshold for goes to its best, as in DynMoE (2024). The threshold
of XMoE (2024) is on a sum, see `top_p`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch

from mocomp.routers import AnyNumber, Evidence, Example

SCORES = {"softmax": lambda logits: torch.softmax(logits, -1), "sigmoid": torch.sigmoid}


@dataclass(frozen=True)
class Threshold(AnyNumber):
    """s = `score`(z); chosen where s > `threshold`, weights s, divided by their sum when `normalize`.

    Experts that tie for the best are all taken where `at_least_one` asks for it. A threshold by expert is `cosine_threshold`.
    """

    name: ClassVar[str] = "threshold"
    threshold: float = 0.2
    score: str = "softmax"
    normalize: bool = False
    at_least_one: bool = True

    def shares(self, logits: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        scores = SCORES[self.score](logits)
        chosen = scores > self.threshold
        if self.at_least_one:
            chosen = chosen | (logits == logits.amax(-1, keepdim=True))
        weights = torch.where(chosen & (logits > float("-inf")), scores, 0.0)
        return weights / weights.sum(-1, keepdim=True).clamp(min=1e-20) if self.normalize else weights

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator[Threshold]:
        if evidence.tensors or "gt" not in evidence.ops:
            return
        for threshold, score, *rest in product(evidence.fractions[:2], SCORES, (False, True), (True, False)):
            if score in evidence.ops:
                yield cls(evidence.experts, threshold, score, *rest)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield from (Example(router) for router in (cls(8), cls(8, 0.8, "sigmoid", True), cls(8, 0.3, at_least_one=False)))

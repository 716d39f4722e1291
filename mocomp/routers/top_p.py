"""As many experts as reach a share of the softmax (Huang 2024, arXiv 2403.07652; the threshold of XMoE 2024 is the same).

Huang weighs by the softmax of the chosen, not divided by their sum. `most` is a limit of ours, for code that has one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch

from mocomp.routers import AnyNumber, Evidence, Example, largest


@dataclass(frozen=True)
class TopP(AnyNumber):
    """p = softmax(z); experts in the order of p until their sum reaches `threshold`; weights p.

    Weights are divided by their sum when `normalize`. No more than `most` experts are taken, if it is not 0; experts that
    tie with the last are taken as well.
    """

    name: ClassVar[str] = "top_p"
    threshold: float = 0.5
    normalize: bool = False
    most: int = 0

    def shares(self, logits: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        scores = torch.softmax(logits, -1)
        ranked = torch.sort(scores, -1, descending=True).values
        before = torch.cumsum(ranked, -1) - ranked
        count = (before < self.threshold).sum(-1, keepdim=True)
        count = count.clamp(max=self.most) if self.most else count
        weights = torch.where(largest(scores, count, -1), scores, 0.0)
        return weights / weights.sum(-1, keepdim=True) if self.normalize else weights

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator[TopP]:
        if "cumsum" in evidence.ops and not evidence.tensors:
            some = [share for share in evidence.fractions if share > 1 / evidence.experts]  # below it, one is always enough
            for threshold, normalize in product(some, (False, True)):
                yield cls(evidence.experts, threshold, normalize)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        for router in (cls(8, 0.6), cls(8, 0.9, normalize=True), cls(8, 0.95, most=2)):
            yield Example(router)

"""Chosen by other scores than those that weigh (StableMoE, Dai 2022, arXiv 2204.08396, stage 2).

There the choice is that of a small router, distilled from the first stage and frozen, on embeddings of token ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from mocomp.routers import Evidence, Example, Router

SCORES = {"softmax": lambda logits: torch.softmax(logits, -1), "sigmoid": torch.sigmoid}


@dataclass(frozen=True)
class Distilled(Router):
    """The k experts of largest d; weights `score`(z) of these. The tensor is d [T, E], the scores of the router that chooses.

    In the paper k = 1 and the weight is the sigmoid. Which expert may not be chosen is said by z, with -inf.
    """

    name: ClassVar[str] = "distilled"
    score: str = "sigmoid"

    def choose(self, logits: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (choice,) = tensors
        _, ids = torch.topk(torch.where(logits > float("-inf"), choice, float("-inf")), self.k, -1)
        return ids, SCORES[self.score](logits).gather(-1, ids)

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator[Distilled]:
        """None: it reads the scores of a second router, where one vector of each expert's is all that is looked for."""
        return iter(())

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield from (Example(router, 8, ((None, 8),)) for router in (cls(1), cls(2, "softmax")))

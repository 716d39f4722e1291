"""Each expert takes its best tokens (Zhou 2022; per modality with sigmoid scores: MoMa 2024, section 2.2).

The form of training: which tokens an expert takes depends on all tokens of the batch. For one that is causal, see
`auxiliary`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch

from mocomp.routers import ANY_OPS, AnyNumber, Evidence, Example, largest, places

SLACK = 1e-6
"""By how much a number of tokens may be off by rounding without becoming one more: a sum of thirds, or a factor in float32."""
SCORES = {"softmax": lambda logits: torch.softmax(logits, -1), "sigmoid": torch.sigmoid}


@dataclass(frozen=True)
class ExpertChoice(AnyNumber):
    """s = `score`(z); expert e takes the c_e tokens of largest s, weights s.

    c_e is the sum of `factor` / n_t over the tokens that may have e, rounded up; n_t of the experts are open to token t,
    those whose logit is not -inf. In a modality group of T_m tokens and E_m experts that is T_m * factor / E_m, rounded
    up. Tokens that tie with the last are taken as well, so the order of the tokens does not matter.
    """

    name: ClassVar[str] = "expert_choice"
    causal: ClassVar[bool] = False
    factor: float = 1.0
    score: str = "softmax"

    def shares(self, logits: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        scores = SCORES[self.score](logits)
        is_open = logits > float("-inf")
        choice = torch.where(is_open, scores, float("-inf"))
        return torch.where(largest(choice, self.capacity(is_open), 0), scores, 0.0)

    def capacity(self, is_open: torch.Tensor) -> torch.Tensor:
        """Whether token t may have expert e [T, E] -> how many tokens each expert takes [E], no more than may have it."""
        wanted = places(is_open, self.factor, 0).squeeze(0)
        rounded_up = (wanted * (1 - SLACK)).ceil().long()
        return torch.minimum(rounded_up, is_open.sum(0))

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator[ExpertChoice]:
        if evidence.ops is not ANY_OPS or evidence.tensors:
            return
        factors = [1.0, 2.0, *(n for n in sorted(evidence.numbers) if 0 < n <= evidence.experts and n not in (1.0, 2.0))][:8]
        yield from (cls(evidence.experts, factor, score) for factor, score in product(factors, SCORES))

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield from (Example(router) for router in (cls(8, 2.0), cls(8, 1.3, "sigmoid")))

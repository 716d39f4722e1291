"""Each expert takes its best tokens of every sequence (Zhou 2022 as published code groups tokens; mixture-of-depths 2024).

With one expert this is what picks the tokens that pass through a block in mixture-of-depths (Raposo 2024, arXiv 2404.02258),
with sigmoid scores: `factor` is then the share of the tokens that do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch

from mocomp.routers import ANY_OPS, AnyNumber, Evidence, Example, largest, places

SCORES = {"softmax": lambda logits: torch.softmax(logits, -1), "sigmoid": torch.sigmoid}


@dataclass(frozen=True)
class ExpertChoiceSequence(AnyNumber):
    """s = `score`(z) [B, S, E]; in each sequence expert e takes the c tokens of largest s, weights s.

    c = S * `factor` / E, rounded `rounded` ("up", or "down" and then at least 1); no token more than may have the expert,
    where logits are -inf. Tokens that tie with the last are taken as well.
    """

    name: ClassVar[str] = "expert_choice_sequence"
    causal: ClassVar[bool] = False
    per_sequence: ClassVar[bool] = True
    factor: float = 1.0
    score: str = "softmax"
    rounded: str = "up"

    def shares(self, logits: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        scores = SCORES[self.score](logits)
        is_open = logits > float("-inf")
        choice = torch.where(is_open, scores, float("-inf"))
        return torch.where(largest(choice, self.capacity(is_open), 1), scores, 0.0)

    def capacity(self, is_open: torch.Tensor) -> torch.Tensor:
        """Whether a token may have an expert [B, S, E] -> how many tokens of its sequence each expert takes [B, 1, E]."""
        wanted = places(is_open, self.factor, 1)
        rounded = (wanted * (1 - 1e-6)).ceil() if self.rounded == "up" else (wanted * (1 + 1e-6)).floor().clamp(min=1)
        return torch.minimum(rounded.long(), is_open.sum(1, keepdim=True))

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator[ExpertChoiceSequence]:
        if evidence.ops is not ANY_OPS or evidence.tensors:
            return
        factors = [1.0, 2.0, *(n for n in sorted(evidence.numbers) if 0 < n <= evidence.experts and n not in (1.0, 2.0))][:5]
        for factor, score, rounded in product(factors, SCORES, ("up", "down")):
            yield cls(evidence.experts, factor, score, rounded)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield from (Example(router) for router in (cls(8), cls(8, 1.3, "sigmoid", "down")))
        yield Example(cls(1, 0.5, "sigmoid", "down"), 1)

"""Each expert takes its best tokens (Zhou 2022; per modality with sigmoid scores: MoMa 2024, section 2.2).

The form of training: which tokens an expert takes depends on all tokens of the batch. For one that is causal, see
`auxiliary`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mocomp.routers import AnyNumber

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
        ranked = torch.sort(choice, 0, descending=True).values
        last = ranked.gather(0, (self.capacity(is_open) - 1).clamp(min=0)[None])  # [1, E]
        return torch.where(is_open & (choice >= last), scores, 0.0)

    def capacity(self, is_open: torch.Tensor) -> torch.Tensor:
        """Whether token t may have expert e [T, E] -> how many tokens each expert takes [E], no more than may have it."""
        experts = is_open.sum(-1, keepdim=True).double()
        wanted = torch.where(is_open, self.factor / experts, 0.0).sum(0)
        rounded_up = (wanted - 1e-6).ceil().long()  # a sum of thirds that is off by rounding is not one token more
        return torch.minimum(rounded_up, is_open.sum(0))

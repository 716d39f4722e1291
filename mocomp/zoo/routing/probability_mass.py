"""As many experts as the token's probabilities ask for."""

from __future__ import annotations

import torch
from torch import Tensor

from mocomp.zoo.routing.bank import GatedFeedForward, Mixture, placed


class TopP(Mixture):
    """Experts in order of p until their sum reaches the threshold; weights p (dynamic routing, Huang 2024)."""

    def __init__(self, hidden: int, experts: int = 4, threshold: float = 0.6):
        super().__init__(hidden, experts, experts, GatedFeedForward)
        self.threshold = threshold

    def weights(self, logits: Tensor) -> Tensor:
        values, ids = torch.softmax(logits, -1).sort(-1, descending=True)
        before = values.cumsum(-1) - values
        return placed(ids, torch.where(before < self.threshold, values, 0.0), logits)


class SmallExperts(TopP):
    """The same choice among many narrow gated experts, with a higher threshold (XMoE, Yang 2024)."""

    def __init__(self, hidden: int, experts: int = 8, threshold: float = 0.9):
        super().__init__(hidden, experts, threshold)


class AdaptiveGap(Mixture):
    """The best alone where it leads the second by more than the threshold, else both; weights p (Li 2023)."""

    def __init__(self, hidden: int, experts: int = 4, threshold: float = 0.3):
        super().__init__(hidden, experts, 2)
        self.threshold = threshold

    def weights(self, logits: Tensor) -> Tensor:
        values, ids = torch.softmax(logits, -1).topk(self.chosen, -1)
        first, second = values.split(1, -1)
        second = torch.where(first - second > self.threshold, 0.0, second)
        return placed(ids, torch.cat([first, second], -1), logits)

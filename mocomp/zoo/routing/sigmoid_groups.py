"""Sigmoid scores, a bias that balances, groups of experts, a factor (DeepSeek-V3 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mocomp.zoo.routing.bank import GatedFeedForward, Mixture, placed


class SigmoidGroups(Mixture):
    """s = sigmoid(z). The groups with the largest sum of two best s + b stay; in them, the K largest s + b.

    Weights are s of the chosen, divided by their sum, times the factor.
    """

    def __init__(self, hidden: int, experts: int = 8, chosen: int = 3, groups: int = 4, kept: int = 2, factor: float = 2.5):
        super().__init__(hidden, experts, chosen, GatedFeedForward)
        self.groups, self.kept, self.factor = groups, kept, factor
        self.bias = nn.Parameter(torch.zeros(experts))

    def weights(self, logits: Tensor) -> Tensor:
        scores = torch.sigmoid(logits)
        grouped = (scores + self.bias).unflatten(-1, (self.groups, -1))
        best = grouped.topk(2, -1).values.sum(-1).topk(self.kept, -1).indices
        kept = torch.zeros_like(grouped[..., 0]).scatter(-1, best, 1.0) > 0
        ids = grouped.masked_fill(~kept[..., None], float("-inf")).flatten(-2).topk(self.chosen, -1).indices
        chosen = scores.gather(-1, ids)
        return placed(ids, chosen / chosen.sum(-1, keepdim=True) * self.factor, logits)

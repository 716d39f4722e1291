"""Routers under which a token has as many experts as the router leaves it, also none."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mocomp.zoo.routing.bank import GatedFeedForward, Mixture, placed


class NullExperts(Mixture):
    """The K best of E real experts and as many that do nothing; weights over the real among them (AdaMoE, Zeng 2024)."""

    def __init__(self, hidden: int, experts: int = 4, chosen: int = 3):
        super().__init__(hidden, experts, chosen, GatedFeedForward)
        self.router = nn.Linear(hidden, 2 * experts, bias=False)

    def weights(self, logits: Tensor) -> Tensor:
        values, ids = torch.softmax(logits, -1).topk(self.chosen, -1)
        real = placed(ids, values, logits)[..., : len(self.experts)]
        return real / real.sum(-1, keepdim=True).clamp(min=1e-9)


class ReLURouting(Mixture):
    """Weights are relu(z): what is negative is not chosen (ReMoE, Wang 2024)."""

    def __init__(self, hidden: int, experts: int = 4):
        super().__init__(hidden, experts, experts, GatedFeedForward)

    def weights(self, logits: Tensor) -> Tensor:
        return torch.relu(logits)

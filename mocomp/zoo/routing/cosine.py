"""Scores by angle: tokens and experts are compared in a space of few dimensions, on the unit sphere."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mocomp.zoo.routing.bank import Mixture, top_k


class Cosine(nn.Module):
    """x [.., H] -> cos(x W, e) / tau [.., E] (X-MoE, Chi 2022)."""

    def __init__(self, hidden: int, experts: int, tau: float = 1.0, width: int = 8):
        super().__init__()
        self.project, self.tau = nn.Linear(hidden, width, bias=False), tau
        self.embeddings = nn.Parameter(torch.empty(experts, width))

    def forward(self, x: Tensor) -> Tensor:
        """x [.., H] -> [.., E]."""
        return F.normalize(self.project(x), dim=-1) @ F.normalize(self.embeddings, dim=-1).T / self.tau


class CosineTopK(Mixture):
    """Softmax of the cosines over a temperature, then the K largest of it (GMoE, Li 2022)."""

    def __init__(self, hidden: int, experts: int = 4, chosen: int = 2):
        super().__init__(hidden, experts, chosen)
        self.router = Cosine(hidden, experts, tau=0.3)

    def weights(self, logits: Tensor) -> Tensor:
        return top_k(logits, self.chosen)


class CosineThreshold(Mixture):
    """Each expert has a threshold g of its own: it takes tokens with sigmoid(cos) > sigmoid(g); y is the mean of those chosen.

    A token that no expert takes goes to the one with the largest cosine (DynMoE, Guo 2024).
    """

    def __init__(self, hidden: int, experts: int = 4):
        super().__init__(hidden, experts, experts)
        self.router = Cosine(hidden, experts)
        self.thresholds = nn.Parameter(torch.zeros(experts))

    def weights(self, logits: Tensor) -> Tensor:
        taken = (torch.sigmoid(logits) > torch.sigmoid(self.thresholds)).to(logits.dtype)
        best = F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
        taken = torch.where(taken.sum(-1, keepdim=True) > 0, taken, best)
        return taken / taken.sum(-1, keepdim=True)

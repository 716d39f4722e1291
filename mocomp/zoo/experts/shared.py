"""Experts that every token has, beside those that it chooses (DeepSeekMoE 2024; Qwen1.5-MoE 2024 with a gate)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mocomp.zoo.experts.parts import FeedForward, top_shares, weighted


class SharedExperts(nn.Module):
    """DeepSeekMoE: many narrow experts, of which some are always there; weights are softmax over all that are routed."""

    def __init__(self, hidden: int, experts: int = 4, chosen: int = 2, shared: int = 2):
        super().__init__()
        self.router, self.chosen = nn.Linear(hidden, experts, bias=False), chosen
        self.experts = nn.ModuleList(FeedForward(hidden, hidden // 2) for _ in range(experts))
        self.shared = nn.ModuleList(FeedForward(hidden, hidden // 2) for _ in range(shared))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> [B, S, H]."""
        probabilities = self.router(x).softmax(-1)
        top, ids = probabilities.topk(self.chosen, -1)
        y = weighted(x, torch.zeros_like(probabilities).scatter(-1, ids, top), self.experts)
        for expert in self.shared:
            y = y + expert(x)
        return y


class GatedShared(nn.Module):
    """Qwen1.5-MoE: one wide shared expert, as far as a sigmoid of the token lets it through."""

    def __init__(self, hidden: int, experts: int = 4, chosen: int = 2):
        super().__init__()
        self.router, self.chosen = nn.Linear(hidden, experts, bias=False), chosen
        self.experts = nn.ModuleList(FeedForward(hidden, hidden // 2) for _ in range(experts))
        self.shared, self.gate = FeedForward(hidden, hidden), nn.Linear(hidden, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> [B, S, H]."""
        routed = weighted(x, top_shares(self.router(x), self.chosen), self.experts)
        return routed + torch.sigmoid(self.gate(x)) * self.shared(x)

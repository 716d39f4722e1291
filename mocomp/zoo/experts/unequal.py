"""Experts of unequal widths: simple tokens are to find small ones (HMoE, Wang 2024)."""

from __future__ import annotations

from torch import Tensor, nn

from mocomp.zoo.experts.parts import FeedForward, top_shares, weighted


class UnequalWidths(nn.Module):
    """The widths rise from expert to expert by equal steps, as HMoE's arithmetic strategy has it."""

    def __init__(self, hidden: int, experts: int = 4, chosen: int = 2):
        super().__init__()
        self.router, self.chosen = nn.Linear(hidden, experts, bias=False), chosen
        self.experts = nn.ModuleList(FeedForward(hidden, hidden * (e + 1) // experts) for e in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> [B, S, H]."""
        return weighted(x, top_shares(self.router(x), self.chosen), self.experts)

"""A dense feed-forward that one expert corrects (DeepSpeed-MoE, Rajbhandari 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mocomp.zoo.experts.parts import FeedForward, weighted


class PyramidResidual(nn.Module):
    """PR-MoE: the dense one, plus the best expert times its probability; layers differ in how many experts they have."""

    def __init__(self, hidden: int, experts: int = 4):
        super().__init__()
        self.router, self.dense = nn.Linear(hidden, experts, bias=False), FeedForward(hidden, hidden)
        self.experts = nn.ModuleList(FeedForward(hidden, hidden) for _ in range(experts))

    def routed(self, x: Tensor) -> Tensor:
        """x [.., H] -> what the best expert says, times its probability."""
        probabilities = self.router(x).softmax(-1)
        best = probabilities == probabilities.amax(-1, keepdim=True)
        return weighted(x, probabilities * best, self.experts)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> [B, S, H]."""
        return self.dense(x) + self.routed(x)


class WeighedResidual(PyramidResidual):
    """DeepSpeed's residual layer: a softmax over two numbers of the token says how much is dense and how much routed."""

    def __init__(self, hidden: int, experts: int = 4):
        super().__init__(hidden, experts)
        self.coefficient = nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> [B, S, H]."""
        dense, routed = torch.split(self.coefficient(x).softmax(-1), 1, -1)
        return self.dense(x) * dense + self.routed(x) * routed

"""Experts nested in one feed-forward: expert i is its first F / 2^i units (MoNE, Jain 2024).

MoNE also cuts the width of what comes in and goes out; here the units between are cut, which is where its gain lies.
Dimension letters: B batch, S sequence, E experts, H hidden, F width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Nested(nn.Module):
    """Each token has the expert of its largest probability, times that."""

    def __init__(self, hidden: int, experts: int = 4):
        super().__init__()
        self.router = nn.Linear(hidden, experts, bias=False)
        self.up, self.down = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)

    def expert(self, x: Tensor, i: int) -> Tensor:
        """x [.., H] -> [.., H] by the first F / 2^i units."""
        width = self.up.out_features >> i
        h = F.gelu(F.linear(x, self.up.weight[:width], self.up.bias[:width]))
        return F.linear(h, self.down.weight[:, :width], self.down.bias)

    def shares(self, probabilities: Tensor) -> Tensor:
        """probabilities [B, S, E] -> shares [B, S, E], one of each token not 0."""
        return probabilities * (probabilities == probabilities.amax(-1, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> [B, S, H]."""
        shares = self.shares(self.router(x).softmax(-1))
        return sum((shares[..., i, None] * self.expert(x, i) for i in range(shares.shape[-1])), torch.zeros_like(x))


class NestedByPriority(Nested):
    """MoNE's expert-preferred router: the largest expert takes its best quarter of the sequence, the next one its best
    quarter of what is left, and so on; the smallest has the rest."""

    def shares(self, probabilities: Tensor) -> Tensor:
        """As `Nested.shares`; a capacity is a quarter of S, rounded up."""
        experts, capacity = probabilities.shape[-1], (probabilities.shape[1] + 3) // 4
        left, taken = torch.ones_like(probabilities[..., 0]), []
        for i in range(experts - 1):
            score = probabilities[..., i] * left - (1 - left)
            rank = (score[:, None, :] > score[:, :, None]).sum(-1)
            taken.append(torch.where(rank < capacity, left, 0.0))
            left = left - taken[-1]
        return probabilities * torch.stack([*taken, left], -1)

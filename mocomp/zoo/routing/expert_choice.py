"""The experts choose their tokens (Zhou 2022), or a second router foretells what they would choose."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mocomp.zoo.routing.bank import GatedFeedForward, Mixture, Routed


class ExpertChoice(Mixture):
    """Of the T tokens of the batch each expert takes its T * K / E best by softmax over experts, rounded up; weights p."""

    def weights(self, logits: Tensor) -> Tensor:
        scores = torch.softmax(logits, -1).flatten(0, 1)  # [T, E]
        tokens, experts = scores.shape
        taken = scores.topk((tokens * self.chosen + experts - 1) // experts, 0).indices
        return torch.zeros_like(scores).scatter(0, taken, scores.gather(0, taken)).view_as(logits)


class PatchChoice(Mixture):
    """Each expert takes its best patches of each image, a quarter of them (patch-level routing, Chowdhury 2023).

    Weights are softmax over the patches that the expert took.
    """

    def weights(self, logits: Tensor) -> Tensor:
        values, taken = logits.topk((logits.shape[1] + 3) // 4, 1)
        return torch.zeros_like(logits).scatter(1, taken, torch.softmax(values, 1))


class Auxiliary(Routed):
    """The causal form of it: sigmoid(a) > 0.5 tells whether an expert takes a token, weight sigmoid(z) (MoMa, Lin 2024)."""

    def __init__(self, hidden: int, experts: int = 4):
        super().__init__(hidden, experts, experts, GatedFeedForward)
        self.foretell = nn.Sequential(nn.Linear(hidden, 8, bias=False), nn.SiLU(), nn.Linear(8, experts, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> y [B, S, H]."""
        taken = torch.sigmoid(self.foretell(x)) > 0.5
        return self.experts(x, torch.where(taken, torch.sigmoid(self.router(x)), 0.0))

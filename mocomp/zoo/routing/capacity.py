"""Experts with room for so many tokens and no more.

Dimension letters: B batch, S sequence, T tokens, E experts, K chosen, C capacity, H hidden.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mocomp.zoo.routing.bank import Mixture, SlotBank


def room(tokens: int, chosen: int, experts: int) -> int:
    """C: how many tokens an expert takes when all have the same number, rounded up."""
    return (tokens * chosen + experts - 1) // experts


def places(ids: Tensor, experts: int) -> Tensor:
    """ids [T, K] -> how many were before each in the line of its expert [T, K]; all first choices stand before all second."""
    asked = F.one_hot(ids.T, experts)  # [K, T, E]
    before = asked.flatten(0, 1).cumsum(0).view_as(asked) - asked
    return (before * asked).sum(-1).T


class GShard(nn.Module):
    """Top-2, weights divided by their sum; tokens are dispatched to E x C places, and those without one are dropped
    (Lepikhin 2020; the second expert always asked, as at inference)."""

    def __init__(self, hidden: int, experts: int = 4):
        super().__init__()
        self.gate, self.experts = nn.Linear(hidden, experts, bias=False), SlotBank(hidden, experts)

    def combine(self, tokens: Tensor) -> Tensor:
        """tokens [T, H] -> the weight of each place for each token [T, E, C]."""
        values, ids = torch.softmax(self.gate(tokens), -1).topk(2, -1)
        values = values / values.sum(-1, keepdim=True)
        experts = len(self.experts)
        slots = torch.arange(room(tokens.shape[0], 2, experts), device=tokens.device)
        place = (places(ids, experts)[..., None] == slots).to(tokens.dtype)  # [T, K, C]
        return torch.einsum("tk,tke,tkc->tec", values, F.one_hot(ids, experts).to(tokens.dtype), place)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> y [B, S, H]."""
        tokens = x.flatten(0, 1)
        combine = self.combine(tokens)
        dispatched = torch.einsum("tec,th->ech", (combine > 0).to(x.dtype), tokens)
        return torch.einsum("tec,ech->th", combine, self.experts(dispatched)).view_as(x)


class BatchPriority(Mixture):
    """Softmax top-k with room for half of what is asked, where tokens with a larger best p stand further in front (V-MoE,
    Riquelme 2021)."""

    def __init__(self, hidden: int, experts: int = 4, chosen: int = 2):
        super().__init__(hidden, experts, chosen)
        self.spare = 2

    def weights(self, logits: Tensor) -> Tensor:
        scores = torch.softmax(logits, -1).flatten(0, 1)
        values, ids = scores.topk(self.chosen, -1)
        order = values[:, 0].argsort(descending=True)
        capacity = room(scores.shape[0], self.chosen, self.spare * scores.shape[1])
        kept = (places(ids[order], scores.shape[1]) < capacity)[order.argsort()]
        return torch.zeros_like(scores).scatter(-1, ids, torch.where(kept, values, 0.0)).view_as(logits)


class Reroute(Mixture):
    """One expert a token; who finds no room asks the next best, until all have one (capacity-aware inference, He 2025)."""

    def __init__(self, hidden: int, experts: int = 4):
        super().__init__(hidden, experts, 1)

    def weights(self, logits: Tensor) -> Tensor:
        scores = torch.softmax(logits, -1).flatten(0, 1)
        tokens, experts = scores.shape
        wishes = scores.argsort(-1, descending=True)
        total = torch.zeros_like(scores)
        for wish in wishes.unbind(-1):
            waiting = total.sum(-1, keepdim=True) == 0
            asked = F.one_hot(wish, experts) * waiting
            line = asked.cumsum(0) + total.sum(0)  # this one's place, those who have one counted in
            total = total + asked * (line <= room(tokens, 1, experts))
        return (total * scores).view_as(logits)
